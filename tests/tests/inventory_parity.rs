//! Ansible itself and `controller` read the same `aws_ec2` files, against one EC2 API on loopback: same groups, hosts
//! and variables, and the same tree.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The controller that was built beside this test, or the one that is named.
fn controller() -> PathBuf {
    if let Some(named) = std::env::var_os("ROLLCALL_CONTROLLER") {
        return named.into();
    }
    let own = std::env::current_exe().expect("a running program has a path");
    own.ancestors().nth(2).expect("tests lie in deps/").join("controller")
}

/// All `aws_ec2` files of a folder and the folders in it.
fn inventories(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            inventories(&path, found);
        } else if path.to_str().is_some_and(|p| p.ends_with("aws_ec2.yaml") || p.ends_with("aws_ec2.yml")) {
            found.push(path);
        }
    }
    found.sort();
}

#[test]
fn ansible_gives_the_same_groups_for_every_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf();
    let parity = root.join("tests/ansible_parity");
    let controller = controller();
    assert!(
        controller.is_file(),
        "{} is missing: build it first (cargo build -p rollcall-controller)",
        controller.display()
    );
    let prepared = Command::new(parity.join("prepare.sh")).output().expect("sh runs");
    assert!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
    let python = String::from_utf8(prepared.stdout).expect("a path");
    let mut files = Vec::new();
    inventories(&root.join("inventories"), &mut files);
    inventories(&parity.join("inventories"), &mut files);
    assert!(files.len() > 12, "{files:?}");
    let done = Command::new(python.trim())
        .arg(parity.join("parity.py"))
        .arg(&controller)
        .args(&files)
        .output()
        .expect("python runs");
    let text = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{text}");
    assert_eq!(text.matches("same   ").count(), files.len() + 2, "{text}");
}
