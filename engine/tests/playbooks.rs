//! Whole playbooks: what good ones mean, and what bad ones are told.

use std::path::{Path, PathBuf};

use rollcall_engine::{
    diag::{Diagnostics, Sources},
    playbook::{Loaded, Loader},
    project::Project,
    roles::NoRoles,
    vars::Vars,
};

fn load(project: &Path, playbook: &str) -> (Sources, Result<Loaded, Diagnostics>) {
    let sources = Sources::default();
    let project = Project::find(&sources, project).unwrap();
    let loader = Loader { sources: &sources, project: &project, embedded_roles: &NoRoles, extra: &Vars::new() };
    let loaded = loader.load(&[PathBuf::from(playbook)]);
    (sources, loaded)
}

fn rendered(sources: &Sources, wrong: &Diagnostics) -> String {
    wrong.0.iter().map(|d| sources.render(d)).collect()
}

#[test]
fn a_good_playbook_is_read() {
    let dir = Path::new("tests/fixtures/playbooks/good");
    let (sources, loaded) = load(dir, "tests/fixtures/playbooks/good/site.yaml");
    let loaded = loaded.unwrap_or_else(|wrong| panic!("{}", rendered(&sources, &wrong)));
    println!("{:#?}", loaded.bundle.plays);
    println!("{:#?}", loaded.bundle.task_files.keys());
    println!("{:#?}", loaded.bundle.files);
    println!("{:#?} {:?}", loaded.roles_used, loaded.warnings);
}
