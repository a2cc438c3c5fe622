//! The `vitrine` program: parse, call, exit.

fn main() {}
