//! Programs from their Go modules. Our `go.mod` names the version, our `go.sum` pins every byte below it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Fewer, Layout, Recipe, Workshop, tool};
use crate::paths;

/// Builds the program, or a folder of plugins; minutes the first time, nothing after that. Returns its path.
pub(super) async fn build(recipe: &Recipe, go: &Path, workshop: &Workshop<'_>) -> anyhow::Result<PathBuf> {
    let version = workshop.run("go version", workshop.command(go).arg("version")).await?;
    let name = format!("{}-{}", recipe.name, recipe.version);
    let packages = recipe.packages.join(" ");
    let mut inputs = vec![recipe.go_mod, recipe.go_sum, &packages, recipe.linker, version.trim()];
    inputs.extend(recipe.fewer.iter().flat_map(|fewer| [fewer.tag, fewer.text]));
    let folder = workshop
        .once("programs", &name, &inputs, async |folder| {
            (workshop.say)(&format!("building {} {} from its Go module (minutes, once)", recipe.name, recipe.version));
            let source = folder.join("source");
            paths::create_owned(&source, workshop.owner)?;
            write(workshop, &source.join("go.mod"), recipe.go_mod)?;
            write(workshop, &source.join("go.sum"), recipe.go_sum)?;
            let target = folder.join(recipe.name);
            if recipe.layout == Layout::Plugins {
                // Go writes several programs into a folder that is there.
                paths::create_owned(&target, workshop.owner)?;
            }
            let mut command = workshop.command(go);
            command
                .arg("build")
                .arg("-C")
                .arg(&source)
                // What the linker leaves out, the compiler need not make: an eighth of its time.
                .args(["-mod=readonly", "-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false"])
                .args(["-ldflags", recipe.linker, "-o"])
                .arg(&target)
                // The compiler collects its garbage less often: a seventh of its time, for one or two gigabytes.
                .envs([("GOWORK", "off"), ("GOGC", "400")]);
            if let Some(fewer) = &recipe.fewer {
                change(fewer, recipe, workshop, go, &source).await?;
                command.args(["-tags", fewer.tag]);
            }
            command.args(recipe.packages);
            workshop.run(&format!("go build of {}", recipe.name), &mut command).await.map(drop)
        })
        .await
        .with_context(|| format!("cannot build {} {}", recipe.name, recipe.version))?;
    Ok(folder.join(recipe.name))
}

/// Lets the build take the module from a copy of its folder, with our file in it: Go's own cache of modules is not to be changed.
async fn change(
    fewer: &Fewer,
    recipe: &Recipe,
    workshop: &Workshop<'_>,
    go: &Path,
    source: &Path,
) -> anyhow::Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Module {
        dir: PathBuf,
    }
    let what = format!("go mod download of {}", fewer.module);
    let mut fetch = workshop.command(go);
    fetch.args(["mod", "download", "-json", fewer.module]).current_dir(source).env("GOWORK", "off");
    let said = workshop.run(&what, &mut fetch).await?;
    let module: Module = serde_json::from_str(&said).with_context(|| format!("{what} said something else: {said}"))?;
    let copy = source.join("module");
    let mut cp = workshop.command(&tool("cp", "coreutils")?);
    cp.args(["--recursive", "--no-preserve=mode"]).arg(&module.dir).arg(&copy);
    workshop.run(&format!("the copy of {}", module.dir.display()), &mut cp).await?;
    write(workshop, &copy.join(fewer.file), fewer.text)?;
    write(workshop, &source.join("go.mod"), &format!("{}\nreplace {} => ./module\n", recipe.go_mod, fewer.module))
}

fn write(workshop: &Workshop<'_>, path: &Path, text: &str) -> anyhow::Result<()> {
    paths::write_atomic(path, text.as_bytes(), 0o644)?;
    paths::give(path, workshop.owner)
}
