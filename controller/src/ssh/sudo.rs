//! Becoming root on a host. The password goes through stdin when sudo asks for it, never on argv.

use super::settings::Secret;

/// Who the agent is started as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Elevation {
    /// As the user who logs in.
    #[default]
    None,
    /// As root. Becoming another user from there is the agent's work, task by task.
    Sudo { password: Option<Secret> },
}

impl Elevation {
    /// What `user` needs so that tasks may become root. root itself needs no sudo, which small
    /// systems do not even have.
    pub fn needed(user: &str, becomes: bool, password: Option<Secret>) -> Self {
        if becomes && user != "root" { Self::Sudo { password } } else { Self::None }
    }
}

/// What sudo shows when it wants the password. Told apart from anything else by its first byte.
pub(super) const PROMPT: &str = "\u{1e}rollcall-sudo-password\u{1e}";

/// Why sudo did not run the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SudoError {
    #[error("sudo asks for a password and none was given; hint: -K, or ansible_become_password")]
    PasswordNeeded,
    #[error("sudo refuses the password")]
    WrongPassword,
    #[error("the user may not use sudo for this (not in sudoers)")]
    NotAllowed,
    #[error("sudo wants a terminal (requiretty); hint: add `Defaults !requiretty` to its sudoers file")]
    TtyRequired,
    #[error("there is no sudo on the host; hint: log in as root, or install it")]
    Missing,
}

/// The words in front of a command that make it root's. `-n` never asks; `-k` forgets an earlier
/// answer, so that the password is asked for, or not, each time alike.
pub(super) fn prefix(password: bool) -> String {
    // sudo's messages are matched below, so they must be English.
    if password { format!("env LC_ALL=C sudo -S -k -p '{PROMPT}' -- ") } else { "env LC_ALL=C sudo -n -- ".to_owned() }
}

/// Reads sudo's complaint, if there is one.
pub(super) fn complaint(stderr: &str) -> Option<SudoError> {
    let has = |part: &str| stderr.contains(part);
    if has("you must have a tty to run sudo") {
        Some(SudoError::TtyRequired)
    } else if has("is not in the sudoers file")
        || has("is not allowed to execute")
        || has("is not allowed to run sudo")
        || has("may not run sudo")
    {
        Some(SudoError::NotAllowed)
    } else if has("incorrect password attempt") || has("Sorry, try again") {
        Some(SudoError::WrongPassword)
    } else if has("a password is required")
        || has("a terminal is required to read the password")
        || has("no password was provided")
    {
        Some(SudoError::PasswordNeeded)
    } else if has("sudo") && (has("not found") || has("No such file or directory")) {
        Some(SudoError::Missing)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_real_sudos() {
        for (text, error) in [
            ("sudo: a password is required\n", SudoError::PasswordNeeded),
            ("sudo: a terminal is required to read the password; either use the -S option", SudoError::PasswordNeeded),
            ("sudo: no password was provided\nsudo: a password is required", SudoError::PasswordNeeded),
            (
                "Sorry, try again.\nsudo: no password was provided\nsudo: 1 incorrect password attempt\n",
                SudoError::WrongPassword,
            ),
            ("web is not in the sudoers file.  This incident will be reported.\n", SudoError::NotAllowed),
            ("Sorry, user web is not allowed to execute '/bin/sh' as root on h.", SudoError::NotAllowed),
            ("Sorry, user web may not run sudo on h.\n", SudoError::NotAllowed),
            ("sudo: sorry, you must have a tty to run sudo\n", SudoError::TtyRequired),
            ("env: 'sudo': No such file or directory\n", SudoError::Missing),
            ("env: \u{2018}sudo\u{2019}: No such file or directory\n", SudoError::Missing),
        ] {
            assert_eq!(complaint(text), Some(error), "{text}");
        }
        assert_eq!(complaint("bash: warning: setlocale\n"), None);
    }

    #[test]
    fn root_needs_no_sudo() {
        let secret = || Some(Secret::new("x"));
        assert_eq!(Elevation::needed("root", true, secret()), Elevation::None);
        assert_eq!(Elevation::needed("web", false, secret()), Elevation::None);
        assert_eq!(Elevation::needed("web", true, secret()), Elevation::Sudo { password: secret() });
    }

    #[test]
    fn the_password_is_nowhere_in_the_command() {
        assert_eq!(prefix(false), "env LC_ALL=C sudo -n -- ");
        assert!(prefix(true).contains("sudo -S -k -p"));
        let shown = format!("{:?}", Elevation::Sudo { password: Some(Secret::new("hunter2")) });
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
