#[allow(dead_code, unused_imports)]
mod ssh;

fn main() {}
