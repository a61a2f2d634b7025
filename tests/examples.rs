//! Runs the programs in `examples/`: they check what they claim.

#[path = "../examples/forks.rs"]
mod forks;
#[path = "../examples/lazy_memory.rs"]
mod lazy_memory;
#[path = "../examples/tables.rs"]
mod tables;

#[test]
fn tables_are_built_and_walked() {
    tables::main().unwrap();
}

#[test]
fn memory_is_taken_when_it_is_written() {
    lazy_memory::main().unwrap();
}

#[test]
fn a_fork_goes_back_to_its_template() {
    forks::main().unwrap();
}
