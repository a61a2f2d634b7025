//! The one walker for page tables of every format.
