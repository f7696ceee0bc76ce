//! Embeds the folders `roles` and `playbooks` of the repository.

use std::{
    env,
    fmt::Write as _,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let mut code = String::new();
    for (name, folder) in [("ROLES", "roles"), ("PLAYBOOKS", "playbooks")] {
        let root = here.join("..").join(folder);
        let mut files = Vec::new();
        if root.is_dir() {
            walk(&root, &root, &mut files)?;
        }
        files.sort();
        let _ = writeln!(code, "/// Files of `{folder}/`.\nconst {name}: &[File] = &[");
        for (relative, path, mode) in files {
            let path = path.canonicalize()?.to_string_lossy().into_owned();
            let _ = writeln!(code, "    ({relative:?}, include_bytes!({path:?}), {mode:#o}),");
        }
        code.push_str("];\n");
        // Cargo looks at everything inside; a folder that is missing is looked for again each time.
        println!("cargo::rerun-if-changed={}", root.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    fs::write(PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("embedded.rs"), code)
}

fn walk(root: &Path, dir: &Path, files: &mut Vec<(String, PathBuf, u32)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, files)?;
        } else if path.parent() != Some(root) || path.extension().is_some_and(|e| e != "md") {
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            // Only what the program itself would set: not the umask of whoever builds.
            let mode = if fs::metadata(&path)?.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
            files.push((relative, path, mode));
        }
    }
    Ok(())
}
