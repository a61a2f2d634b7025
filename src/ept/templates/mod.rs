//! Templates, their forks, and the way back from a fork to its template.

pub mod error;
pub mod reset;
pub mod template;
pub mod warm;
pub mod working_set;
