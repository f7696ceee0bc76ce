use std::path::PathBuf;

/// Folders of this host.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// Ledger, copies, content: 0700.
    pub(crate) state: PathBuf,
    /// The lock.
    pub(crate) run: PathBuf,
}

impl Paths {
    /// The machine's for root, the user's own for anybody else.
    pub(crate) fn of_this_process() -> Self {
        if nix::unistd::geteuid().is_root() {
            return Self { state: "/var/lib/rollcall".into(), run: "/run/rollcall".into() };
        }
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into()));
        let state = std::env::var_os("XDG_STATE_HOME").map_or_else(|| home.join(".local/state"), PathBuf::from);
        Self { state: state.join("rollcall"), run: state.join("rollcall/run") }
    }
}

/// The name of the user as whom this process runs, from /etc/passwd.
pub(crate) fn process_user() -> String {
    use rollcall_engine::host::Read as _;
    let uid = nix::unistd::geteuid().as_raw();
    let users = rollcall_engine::host::real::Real::new().users().unwrap_or_default();
    users.into_iter().find(|u| u.uid == Some(uid)).map_or_else(|| uid.to_string(), |u| u.name)
}
