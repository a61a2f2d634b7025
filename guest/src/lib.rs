//! Guest library.
#![no_std]
