//! Guest-physical address spaces: EPT entries, lazy fill, and what must be flushed.
