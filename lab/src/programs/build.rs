//! Programs from their Go modules. Our `go.mod` names the version, our `go.sum` pins every byte below it.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{Layout, Recipe, Workshop, tool};
use crate::paths;

/// Builds the program, or a folder of plugins; minutes the first time, nothing after that. Returns its path.
pub(super) async fn build(recipe: &Recipe, workshop: &Workshop<'_>) -> anyhow::Result<PathBuf> {
    let go = tool("go", "golang-go (1.26 or newer; or the archive from go.dev)")?;
    let version = workshop.run("go version", workshop.command(&go).arg("version")).await?;
    let name = format!("{}-{}", recipe.name, recipe.version);
    let packages = recipe.packages.join(" ");
    let inputs = [recipe.go_mod, recipe.go_sum, &packages, recipe.linker, version.trim()];
    let folder = workshop
        .once("programs", &name, &inputs, async |folder| {
            (workshop.say)(&format!("building {} {} from its Go module (minutes, once)", recipe.name, recipe.version));
            let source = folder.join("source");
            paths::create_owned(&source, workshop.owner)?;
            for (file, text) in [("go.mod", recipe.go_mod), ("go.sum", recipe.go_sum)] {
                let path = source.join(file);
                paths::write_atomic(&path, text.as_bytes(), 0o644)?;
                paths::give(&path, workshop.owner)?;
            }
            let target = folder.join(recipe.name);
            if recipe.layout == Layout::Plugins {
                // Go writes several programs into a folder that is there.
                paths::create_owned(&target, workshop.owner)?;
            }
            let mut command = workshop.command(&go);
            command
                .arg("build")
                .arg("-C")
                .arg(&source)
                .args(["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", recipe.linker, "-o"])
                .arg(&target)
                .args(recipe.packages)
                .env("GOWORK", "off");
            workshop.run(&format!("go build of {}", recipe.name), &mut command).await.map(drop)
        })
        .await
        .with_context(|| format!("cannot build {} {}", recipe.name, recipe.version))?;
    Ok(folder.join(recipe.name))
}
