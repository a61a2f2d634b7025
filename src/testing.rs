//! What the tests of all layers share.

/// How many cases a property is tried on: `PROPTEST_CASES` for a long run, else `few`.
pub fn cases(few: u32) -> u32 {
    let given = std::env::var("PROPTEST_CASES").ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(few)
}
