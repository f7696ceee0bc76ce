//! Jump hosts: `ProxyJump` lists, and what `ansible_ssh_common_args` says in their place.

use std::fmt;
use std::path::PathBuf;

/// One jump host. What is missing comes from the ssh configuration, then from the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hop {
    pub user: Option<String>,
    /// Name as `Host` lines of the ssh configuration match it, or an address.
    pub host: String,
    pub port: Option<u16>,
    pub identity_file: Option<PathBuf>,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl Hop {
    /// `[user@]host[:port]`, `[user@][v6]:port` or `ssh://[user@]host[:port]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix("ssh://").unwrap_or(text).trim_end_matches('/');
        let (user, address) = match bare.rsplit_once('@') {
            Some((user, address)) => (Some(user.to_owned()), address),
            None => (None, bare),
        };
        let (host, port) =
            split_port(address).ok_or_else(|| format!("{text:?} is no jump host: expected [user@]host[:port]"))?;
        let blank = host.is_empty() || host.contains(char::is_whitespace) || host.starts_with('-');
        if blank || user.as_deref() == Some("") {
            return Err(format!("{text:?} is no jump host: expected [user@]host[:port]"));
        }
        Ok(Self { user, host: host.to_owned(), port, identity_file: None })
    }

    /// A comma-separated list, the nearest hop first; `none` is the empty list.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Vec::new());
        }
        text.split(',').map(|part| Self::parse(part.trim())).collect()
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`; a bare IPv6 address has no port.
fn split_port(address: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(parse_port(port)?))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    match address.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Some((address, None)),
        Some((host, port)) => Some((host, Some(parse_port(port)?))),
        None => Some((address, None)),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// The jump hosts that `ansible_ssh_common_args` (or `ansible_ssh_extra_args`) asks for:
/// `-J a,b`, `-o ProxyJump=a`, or `-o ProxyCommand="ssh -W %h:%p [-q -p PORT -i KEY -l USER] bastion"`.
/// Options that do not concern the way to the host are left alone, so that existing inventories
/// work. `None`: nothing is said of the way, which is then for others to say; an empty list says that there are no
/// jumps (`ProxyJump=none`). Of several the first counts, as for ssh. Another ProxyCommand is an error that shows the
/// ProxyJump to write instead.
pub fn jumps_from_ssh_args(args: &str) -> Result<Option<Vec<Hop>>, String> {
    let words = split_words(args)?;
    let mut words = words.iter().map(String::as_str);
    let mut jumps = None;
    while let Some(word) = words.next() {
        let said = if let Some(list) = option_value(word, "-J", &mut words)? {
            Hop::parse_list(list)?
        } else if let Some(option) = option_value(word, "-o", &mut words)? {
            match split_option(option) {
                (key, value) if key.eq_ignore_ascii_case("ProxyJump") => Hop::parse_list(value)?,
                (key, value) if key.eq_ignore_ascii_case("ProxyCommand") => hops_from_proxy_command(value)?,
                _ => continue,
            }
        } else {
            continue;
        };
        jumps.get_or_insert(said);
    }
    Ok(jumps)
}

fn split_words(text: &str) -> Result<Vec<String>, String> {
    shell_words::split(text).map_err(|_| format!("a quote is not closed in {text:?}"))
}

/// The value of `-Xvalue` or `-X value`, if `word` is option `name`.
fn option_value<'a>(
    word: &'a str,
    name: &str,
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<Option<&'a str>, String> {
    match word.strip_prefix(name) {
        None => Ok(None),
        Some("") => match words.next() {
            Some(value) => Ok(Some(value)),
            None => Err(format!("{name} needs a value")),
        },
        Some(value) => Ok(Some(value)),
    }
}

/// `Key=value` or `Key value`, as `-o` takes them.
fn split_option(option: &str) -> (&str, &str) {
    let at = option.find(['=', ' ', '\t']).unwrap_or(option.len());
    let (key, value) = option.split_at(at);
    (key, value.trim_start_matches(['=', ' ', '\t']))
}

/// The hop of `ssh -W %h:%p bastion`; further options of that ssh are read where they say who and
/// where, an option that we do not know makes the command foreign.
pub(super) fn hops_from_proxy_command(command: &str) -> Result<Vec<Hop>, String> {
    if command.eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    let foreign = || {
        format!(
            "ProxyCommand {command:?} is not taken: no program is started for a connection; \
             write ProxyJump=[user@]bastion[:port] instead"
        )
    };
    let words = split_words(command)?;
    let mut words = words.iter().map(String::as_str);
    let program = words.next().unwrap_or_default();
    if program.rsplit('/').next() != Some("ssh") {
        return Err(foreign());
    }
    let mut hop = Hop::default();
    let mut forwards = false;
    let mut before = Vec::new();
    while let Some(word) = words.next() {
        if let Some(to) = option_value(word, "-W", &mut words)? {
            forwards = matches!(to, "%h:%p" | "[%h]:%p");
        } else if let Some(port) = option_value(word, "-p", &mut words)? {
            hop.port = Some(parse_port(port).ok_or_else(|| format!("{port:?} is no port in {command:?}"))?);
        } else if let Some(user) = option_value(word, "-l", &mut words)? {
            hop.user = Some(user.to_owned());
        } else if let Some(key) = option_value(word, "-i", &mut words)? {
            hop.identity_file = Some(key.into());
        } else if let Some(list) = option_value(word, "-J", &mut words)? {
            before = Hop::parse_list(list)?;
        } else if let Some(option) = option_value(word, "-o", &mut words)? {
            if split_option(option).0.eq_ignore_ascii_case("ProxyCommand") {
                return Err(foreign());
            }
        } else if let Some(flags) = word.strip_prefix('-') {
            // Flags that change nothing about where the connection goes.
            if flags.is_empty() || !flags.chars().all(|flag| "qvATaxn46".contains(flag)) {
                return Err(foreign());
            }
        } else if hop.host.is_empty() {
            let named = Hop::parse(word)?;
            hop.host = named.host;
            hop.user = named.user.or(hop.user);
            hop.port = named.port.or(hop.port);
        } else {
            return Err(foreign());
        }
    }
    if !forwards || hop.host.is_empty() {
        return Err(foreign());
    }
    before.push(hop);
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(args: &str) -> String {
        match jumps_from_ssh_args(args) {
            Ok(Some(hops)) => hops.iter().map(ToString::to_string).collect::<Vec<_>>().join(" > "),
            Ok(None) => "nothing said".to_owned(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn proxy_jump_in_all_its_spellings() {
        assert_eq!(shown("-J bastion"), "bastion");
        assert_eq!(shown("-Jadmin@bastion:2222"), "admin@bastion:2222");
        assert_eq!(shown("-o ProxyJump=a,b@c"), "a > b@c");
        assert_eq!(shown("-oProxyJump=a"), "a");
        assert_eq!(shown("-o 'ProxyJump a'"), "a");
        assert_eq!(shown("-o ProxyJump=ssh://u@[fd00::1]:22"), "u@[fd00::1]:22");
        assert_eq!(shown("-o ProxyJump=none"), "");
        assert_eq!(shown("-o StrictHostKeyChecking=no -C"), "nothing said");
        assert_eq!(shown(""), "nothing said");
        // ssh, too, takes the first of them.
        assert_eq!(shown("-J a -o ProxyJump=b"), "a");
    }

    #[test]
    fn a_proxy_command_that_is_a_jump() {
        assert_eq!(shown(r#"-o ProxyCommand="ssh -W %h:%p -q ec2-user@bastion""#), "ec2-user@bastion");
        assert_eq!(shown("-o 'ProxyCommand=/usr/bin/ssh -p 2200 -l me -W %h:%p b'"), "me@b:2200");
        assert_eq!(shown(r#"-oProxyCommand="ssh -J a -W [%h]:%p b""#), "a > b");
        let hops = jumps_from_ssh_args(r#"-o ProxyCommand="ssh -i ~/.ssh/k -W %h:%p b""#);
        assert_eq!(
            hops.expect("a way").expect("it is said").first().and_then(|hop| hop.identity_file.clone()),
            Some("~/.ssh/k".into())
        );
    }

    #[test]
    fn a_foreign_proxy_command_names_the_way_out() {
        for foreign in [
            r#"-o ProxyCommand="nc -X 5 %h %p""#,
            r#"-o ProxyCommand="aws ssm start-session --target %h""#,
            r#"-o ProxyCommand="ssh bastion nc %h %p""#,
            r#"-o ProxyCommand="ssh -W other:22 bastion""#,
            r#"-o ProxyCommand="ssh -D 1080 -W %h:%p bastion""#,
        ] {
            let text = shown(foreign);
            assert!(text.starts_with("error: "), "{foreign}: {text}");
            assert!(text.contains("ProxyJump=[user@]bastion[:port]"), "{foreign}: {text}");
        }
    }

    #[test]
    fn bad_hops_are_refused() {
        for bad in ["-J ''", "-J a:0", "-J a:99999", "-J @a", "-J -oX", "-J a,,b", "-J [::1", "-J"] {
            assert!(shown(bad).starts_with("error: "), "{bad}: {}", shown(bad));
        }
        assert!(shown("-o 'ProxyJump=a").contains("quote is not closed"));
    }
}
