//! What runs on a host around the agent: one `sh` command line that starts it, one that installs
//! and starts it. Only sh, coreutils and, where they are there, gzip or zstd, and openssl.
//!
//! Rules that both keep: one line, no single quote and no `!` inside, so that any login shell
//! (csh too) hands them to `sh` as they are; words for us start with [`MARK`], so that what a
//! login script prints before them does no harm.

use super::agents::AgentBinary;
use super::sudo;

/// In front of every line that is meant for us.
pub(super) const MARK: &str = "\u{1e}rollcall-agent";
/// Old agents that stay beside the new one are dropped beyond this many files in all.
const KEEP: usize = 3;

/// How the binary travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Codec {
    Zstd,
    Gzip,
    Raw,
}

impl Codec {
    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "zstd" => Some(Self::Zstd),
            "gzip" => Some(Self::Gzip),
            "raw" => Some(Self::Raw),
            _ => None,
        }
    }

    fn unpack(self) -> &'static str {
        match self {
            Self::Zstd => "zstd -q -d -c",
            Self::Gzip => "gzip -d -c",
            Self::Raw => "cat",
        }
    }
}

/// Tries the agents, one per architecture. Answers `ready` and becomes the agent, or
/// `missing OS ARCH UID CODEC`.
///
/// `sudo`: `None` to run as the login user, else whether sudo gets a password.
pub(super) fn start(folder: &str, agents: &[&AgentBinary], sudo: Option<bool>, args: &[&str]) -> String {
    let choose = match agents {
        [one] => format!("A={folder}/agent-{};", one.hash),
        many => {
            let cases = many
                .iter()
                .map(|agent| format!("{}) A={folder}/agent-{};; ", agent.arch, agent.hash))
                .collect::<Vec<_>>()
                .concat();
            // A path that is never there, where no agent fits.
            format!("A={folder}/none; case $(uname -m) in {cases}esac;")
        }
    };
    let script = format!(
        "{unset}{choose} if test -f \"$A\" && test -x \"$A\"; then echo \"{MARK} ready\"; exec \"$A\" \"$@\"; fi; \
         C=raw; if command -v gzip >/dev/null; then C=gzip; fi; if command -v zstd >/dev/null; then C=zstd; fi; \
         echo \"{MARK} missing $(uname -sm) $(id -u) $C\"; exit 93",
        unset = unset(sudo)
    );
    command(sudo, &script, args)
}

/// Installs the agent from the next `size` bytes of stdin as root, and becomes it.
/// Answers `begin`, then `ready` or `failed STEP`.
///
/// `login_is_root`: no sudo is needed to install, whoever the agent then runs as.
pub(super) fn install(
    folder: &str,
    agent: &AgentBinary,
    codec: Codec,
    size: usize,
    sudo: Option<bool>,
    login_is_root: bool,
    args: &[&str],
) -> String {
    let install = install_script(folder, &agent.hash, codec, size);
    let run = format!("echo \"{MARK} ready\"; exec {folder}/agent-{} \"$@\"", agent.hash);
    if sudo.is_some() || login_is_root {
        return command(sudo, &format!("{}{install} {run}", unset(sudo)), args);
    }
    // The agent runs as the login user, and root installs it all the same: whoever may write the
    // binary could give it to the next run, which may be root's.
    let prefix = sudo::prefix(false);
    let script = format!("I=$1; shift; {prefix}sh -c \"$I\" rollcall || exit 94; {run}");
    let mut all = vec![install.as_str()];
    all.extend_from_slice(args);
    command(None, &script, &all)
}

/// Every program that is started costs about a millisecond, so the shell does by itself what it can. OpenSSL, where it is there, knows
/// what the processor does for SHA-256: a third of the time of coreutils.
fn install_script(folder: &str, hash: &str, codec: Codec, size: usize) -> String {
    let unpack = codec.unpack();
    format!(
        "umask 022; D={folder}; F=$D/agent-{hash}; T=$D/.agent-{hash}.$$; \
         fail() {{ echo \"{MARK} failed $1\"; exit 94; }}; \
         trap \"rm -f $T\" EXIT; trap \"exit 94\" HUP INT TERM PIPE; \
         echo \"{MARK} begin\"; \
         mkdir -p $D && chmod u=rwx,go=rx,g-s $D || fail folder; \
         test -O $D || chown $(id -u):$(id -g) $D || fail folder; \
         for f in $D/.agent-*; do case \"${{f##*.}}\" in $$) rm -f \"$f\";; \
         *) if test -e \"$f\"; then kill -0 \"${{f##*.}}\" 2>/dev/null || rm -f \"$f\"; fi;; esac; done; \
         set -C; head -c {size} | {unpack} > $T || fail write; set +C; \
         S=$(openssl dgst -sha256 -r < $T 2>/dev/null) || S=$(sha256sum < $T); test \"${{S%% *}}\" = \"{hash}\" || fail hash; \
         chmod 0755 $T || fail mode; \
         $T --version </dev/null >/dev/null || fail run; \
         sync $T 2>/dev/null || sync; \
         mv -f $T $F || fail rename; \
         i=0; for f in $D/agent-*; do i=$((i+1)); done; test $i -le {KEEP} || {{ \
         i=0; for f in $(ls -t $D); do case \"$f\" in agent-*) i=$((i+1)); \
         test $i -le {KEEP} || rm -f \"$D/$f\";; esac; done; }}; \
         trap - EXIT HUP INT TERM PIPE;"
    )
}

/// sudo was asked to speak English; the agent's locale is its own affair.
fn unset(sudo: Option<bool>) -> &'static str {
    if sudo.is_some() { "unset LC_ALL; " } else { "" }
}

fn command(sudo: Option<bool>, script: &str, args: &[&str]) -> String {
    let prefix = match sudo {
        Some(password) => sudo::prefix(password),
        None => "exec ".to_owned(),
    };
    let args = args.iter().map(|arg| format!(" {}", quote(arg))).collect::<Vec<_>>().concat();
    format!("{prefix}sh -c '{script}' rollcall{args}")
}

/// Single quotes, which every shell takes alike.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(arch: &str) -> AgentBinary {
        AgentBinary { path: "agent".into(), arch: arch.into(), hash: format!("{arch}00") }
    }

    #[test]
    fn scripts_keep_the_rules_of_login_shells() {
        let (x86, arm) = (agent("x86_64"), agent("aarch64"));
        for line in [
            start("/d", &[&x86], None, &["exec"]),
            start("/d", &[&x86, &arm], Some(true), &["exec"]),
            install("/d", &x86, Codec::Gzip, 10, Some(false), false, &["exec"]),
            install("/d", &x86, Codec::Raw, 10, None, false, &["exec"]),
            install("/d", &x86, Codec::Zstd, 10, None, true, &[]),
        ] {
            assert!(!line.contains('\n') && !line.contains('!'), "{line}");
            let words = shell_words::split(&line).expect("balanced quotes");
            assert!(words.iter().any(|word| word == "rollcall"), "{line}");
            let parsed = std::process::Command::new("sh").args(["-n", "-c", &line]).status();
            assert!(parsed.expect("sh runs").success(), "{line}");
        }
    }

    #[test]
    fn arguments_arrive_as_they_are() {
        let odd = "a'b \"c\" $(d) \\";
        let line = command(None, "printf %s \"$1\"", &[odd]);
        let out = std::process::Command::new("sh").args(["-c", &line]).output().expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&out.stdout), odd);
    }
}
