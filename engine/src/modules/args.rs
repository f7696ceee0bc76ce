//! Arguments of modules: declared once, parsed, checked and documented from that one declaration.

use std::{fmt, path::PathBuf, time::Duration};

use serde_json::{Map, Value};

use super::Failure;

/// An argument, for checks and for the manual.
#[derive(Clone, Copy)]
pub struct Arg {
    /// The name in the manual.
    pub name: &'static str,
    /// Other names that are taken for it.
    pub aliases: &'static [&'static str],
    /// `path`, `boolean`, `one of file, directory`.
    pub kind: fn() -> String,
    /// Must be given.
    pub required: bool,
    /// The default as text; empty for none.
    pub default: &'static str,
    /// The documentation, from the declaration's comment.
    pub doc: &'static str,
    /// Checks a rendered value without keeping it.
    pub check: fn(&Value) -> Result<(), String>,
}

impl fmt::Debug for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arg").field("name", &self.name).field("kind", &(self.kind)()).finish_non_exhaustive()
    }
}

/// A type that an argument can have.
pub trait FromArg: Sized {
    /// For messages and the manual: `a path`, `a boolean`.
    fn kind() -> String;
    /// Reads a rendered value; the error is a fragment that says what was expected and found.
    fn from_arg(value: &Value) -> Result<Self, String>;
}

/// `expected KIND, found 'x'`.
pub fn expected<T: FromArg>(value: &Value) -> String {
    let found = match value {
        Value::Null => "nothing".to_owned(),
        Value::String(s) => format!("'{}'", s.chars().take(60).collect::<String>()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
        other => other.to_string(),
    };
    format!("expected {}, found {found}", T::kind())
}

impl FromArg for String {
    fn kind() -> String {
        "a string".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(s) => Ok(s.clone()),
            Value::Number(n) => Ok(n.to_string()),
            Value::Bool(b) => Ok(b.to_string()),
            _ => Err(expected::<Self>(value)),
        }
    }
}

impl FromArg for bool {
    fn kind() -> String {
        "a boolean".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        match value {
            Value::Bool(b) => Ok(*b),
            Value::Number(n) if n.as_i64() == Some(1) => Ok(true),
            Value::Number(n) if n.as_i64() == Some(0) => Ok(false),
            Value::String(s) => match s.to_lowercase().as_str() {
                "yes" | "true" | "on" | "1" | "y" => Ok(true),
                "no" | "false" | "off" | "0" | "n" => Ok(false),
                _ => Err(expected::<Self>(value)),
            },
            _ => Err(expected::<Self>(value)),
        }
    }
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl FromArg for $t {
            fn kind() -> String {
                "a whole number".into()
            }
            fn from_arg(value: &Value) -> Result<Self, String> {
                let number = match value {
                    Value::Number(n) => n.as_i64(),
                    Value::String(s) => s.trim().parse().ok(),
                    _ => None,
                };
                number.and_then(|n| n.try_into().ok()).ok_or_else(|| expected::<Self>(value))
            }
        }
    )*};
}
integers!(i64, u64, u32, u16);

impl FromArg for PathBuf {
    fn kind() -> String {
        "an absolute path".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(s) if s.contains('\0') => Err("a path cannot hold a NUL byte".into()),
            Value::String(s) if s.starts_with('/') => Ok(Self::from(s)),
            _ => Err(expected::<Self>(value)),
        }
    }
}

/// Seconds, whole or not.
impl FromArg for Duration {
    fn kind() -> String {
        "a number of seconds".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        let seconds = match value {
            Value::Number(n) => n.as_f64(),
            Value::String(s) => s.trim().parse().ok(),
            _ => None,
        };
        seconds.and_then(|s| Self::try_from_secs_f64(s).ok()).ok_or_else(|| expected::<Self>(value))
    }
}

impl FromArg for Value {
    fn kind() -> String {
        "any value".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        Ok(value.clone())
    }
}

impl FromArg for Map<String, Value> {
    fn kind() -> String {
        "a mapping".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        value.as_object().cloned().ok_or_else(|| expected::<Self>(value))
    }
}

impl<T: FromArg> FromArg for Option<T> {
    fn kind() -> String {
        T::kind()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        if value.is_null() { Ok(None) } else { T::from_arg(value).map(Some) }
    }
}

/// A list; one value, or values with commas between, are taken for one.
impl<T: FromArg> FromArg for Vec<T> {
    fn kind() -> String {
        format!("a list ({} each)", T::kind())
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        match value {
            Value::Array(items) => items.iter().map(T::from_arg).collect(),
            Value::String(s) => s.split(',').map(|part| T::from_arg(&Value::String(part.trim().to_owned()))).collect(),
            Value::Null => Ok(Vec::new()),
            other => T::from_arg(other).map(|v| vec![v]),
        }
    }
}

/// Permission bits: `"0644"`, `0644` (a YAML octal), `u=rw,go=r`, or `preserve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bits.
    Bits(u32),
    /// Symbolic changes to the mode that is there.
    Symbolic(String),
    /// The source's.
    Preserve,
}

impl FromArg for Mode {
    fn kind() -> String {
        "a mode like \"0644\" or \"u=rw,go=r\"".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        match value {
            Value::Number(n) => {
                // 0644 in YAML is octal and arrives as 420; 644 is a decimal number that nobody means.
                let n = n.as_u64().filter(|n| *n <= 0o7777).ok_or_else(|| expected::<Self>(value))?;
                if [644, 600, 640, 755, 700, 750, 400, 440, 444, 775, 664, 660, 666, 777].contains(&n) {
                    return Err(format!("mode {n} is a decimal number: write \"0{n}\""));
                }
                Ok(Self::Bits(n as u32))
            }
            Value::String(s) if s == "preserve" => Ok(Self::Preserve),
            Value::String(s) if !s.is_empty() && s.chars().all(|c| ('0'..='7').contains(&c)) && s.len() <= 5 => {
                u32::from_str_radix(s, 8)
                    .ok()
                    .filter(|m| *m <= 0o7777)
                    .map(Self::Bits)
                    .ok_or_else(|| expected::<Self>(value))
            }
            Value::String(s) if symbolic(s, 0, false).is_some() => Ok(Self::Symbolic(s.clone())),
            _ => Err(expected::<Self>(value)),
        }
    }
}

impl Mode {
    /// The bits, given those that are there (`current`) and the source's.
    pub fn resolve(&self, current: u32, source: u32, directory: bool) -> u32 {
        match self {
            Self::Bits(bits) => *bits,
            Self::Preserve => source,
            Self::Symbolic(text) => symbolic(text, current, directory).unwrap_or(current),
        }
    }
}

fn symbolic(text: &str, mut mode: u32, directory: bool) -> Option<u32> {
    for clause in text.split(',') {
        let at = clause.find(['+', '-', '='])?;
        let (who, rest) = clause.split_at(at);
        let (op, perms) = rest.split_at(1);
        let who = if who.is_empty() { "a" } else { who };
        let mut mask = 0;
        for w in who.chars() {
            mask |= match w {
                'u' => 0o4700,
                'g' => 0o2070,
                'o' => 0o1007,
                'a' => 0o7777,
                _ => return None,
            };
        }
        let mut bits = 0;
        for p in perms.chars() {
            bits |= match p {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if directory || mode & 0o111 != 0 => 0o111,
                'X' => 0,
                's' => 0o6000,
                't' => 0o1000,
                _ => return None,
            };
        }
        let bits = bits & mask;
        mode = match op {
            "+" => mode | bits,
            "-" => mode & !bits,
            _ => (mode & !(mask & 0o777)) & !(if perms.contains('s') { 0 } else { mask & 0o6000 }) | bits,
        };
    }
    Some(mode)
}

/// Base64 in JSON.
pub mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes.
    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(bytes))
    }

    /// Reads.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(d)?).map_err(D::Error::custom)
    }
}

/// Checks a whole map of arguments: unknown names, missing ones. Values are checked by the parsers. An argument `*` in
/// the declaration takes any name (`set_fact`).
pub fn check_names(args: &Map<String, Value>, known: &[Arg]) -> Result<(), Failure> {
    if known.iter().any(|arg| arg.name == "*") {
        return Ok(());
    }
    for name in args.keys() {
        if !known.iter().any(|a| a.name == name || a.aliases.contains(&name.as_str())) {
            let hint = equivalent(name)
                .map(str::to_owned)
                .or_else(|| crate::diag::suggest(name, known.iter().map(|a| a.name)));
            return Err(Failure::new(format!("unknown argument '{name}'")).hint_if(hint));
        }
    }
    Ok(())
}

/// What to write instead of an argument that Ansible's modules have and ours lack.
pub fn equivalent(name: &str) -> Option<&'static str> {
    EQUIVALENTS.iter().find(|(known, _)| *known == name).map(|(_, hint)| *hint)
}

/// Arguments that Ansible's modules have and ours lack, with what to write instead.
const EQUIVALENTS: &[(&str, &str)] = &[
    ("unsafe_writes", "leave it out: files are always replaced atomically"),
    ("decrypt", "leave it out: files are taken as they are"),
    ("local_follow", "leave it out: links in a source folder are copied as what they point to"),
    ("extra_opts", "use strip_components, include or exclude"),
    ("keep_newer", "leave it out: files that differ from the archive are replaced"),
    ("sha256sum", "use checksum: sha256:HEX"),
    ("tmp_dest", "leave it out: the temporary file is always beside its destination"),
    ("get_mime", "leave it out: the type of the content is not looked at"),
    ("get_attributes", "leave it out: attributes of lsattr are not looked at"),
    ("attributes", "attributes of chattr are not handled: use a command"),
    ("attr", "attributes of chattr are not handled: use a command"),
    ("selevel", "SELinux contexts are not handled: use a command"),
    ("serole", "SELinux contexts are not handled: use a command"),
    ("setype", "SELinux contexts are not handled: use a command"),
    ("seuser", "SELinux contexts are not handled: use a command"),
    ("validate_certs", "leave it out: certificates are always verified; name those of your own CA in ca_path"),
    ("variable_start_string", "leave it out: templates are Jinja or Tera with their usual delimiters"),
    ("trim_blocks", "leave it out: .j2 templates have it on, .tera templates trim with {%-"),
    ("executable", "`executable` belongs to the shell module"),
    ("expand_argument_vars", "arguments are passed as they are; `shell` expands"),
    ("warn", "leave it out: there are no such warnings"),
    ("argv", "`argv` belongs to the command module"),
    ("password_lock", "give `password: \"!\"` to lock it"),
    ("generate_ssh_key", "run ssh-keygen by the command module, with `creates`"),
    ("move_home", "move the folder by a command; `home` only changes the entry"),
    ("non_unique", "two users with one number are not supported"),
    ("use", "leave it out: the way is found by itself"),
    ("daemon_reexec", "run `systemctl daemon-reexec` by the command module"),
    ("scope", "only the system's units are handled"),
    ("sleep", "leave it out: a restart waits for the unit"),
    ("pattern", "leave it out: systemd knows the state"),
    ("upgrade", "upgrade the whole system by a command: `apt-get -y dist-upgrade`"),
    ("autoremove", "run `apt-get -y autoremove` by the command module"),
    ("force_apt_get", "apt-get is what runs: leave it out"),
    ("dpkg_options", "changed configuration files are kept: leave it out"),
    ("repo", "a line `deb URI SUITE COMPONENTS` is written as uris, suites and components"),
    ("filename", "`name` is the file's name"),
    ("unix_socket", "requests through a socket are not supported"),
    ("force_basic_auth", "user and password are always sent: leave it out"),
    ("http_agent", "give `headers: {User-Agent: …}`"),
    ("active_connection_states", "connections are not counted here: leave it out"),
    ("exclude_hosts", "connections are not counted here: leave it out"),
];

/// Declares a module's arguments: a struct, its parser, and `ARGS` for the manual and for checks before the run.
///
/// ```
/// rollcall_engine::args! {
///     /// Arguments.
///     pub struct Args {
///         /// Where the file goes.
///         dest ["path"]: std::path::PathBuf, required;
///         /// Keep a copy of the file that was there.
///         backup []: bool = false;
///         /// Owner.
///         owner []: Option<String>;
///     }
/// }
/// ```
/// After the name stand its aliases. `required`, or `= default`, or neither for `Option`/`Vec` (absent is empty).
#[macro_export]
macro_rules! args {
    ($(#[$m:meta])* $vis:vis struct $name:ident {
        $( #[doc = $doc:literal] $(#[doc = $more:literal])* $field:ident [$($alias:literal),*] : $ty:ty $(, $required:ident)? $(= $default:expr)? ; )*
    }) => {
        $(#[$m])*
        #[derive(Clone, Debug)]
        $vis struct $name { $( #[doc = $doc] pub $field: $ty, )* }

        /// The arguments, for checks and for the manual.
        $vis const ARGS: &[$crate::modules::Arg] = &[ $( $crate::modules::Arg {
            name: $crate::arg_name!(stringify!($field)),
            aliases: &[$($alias),*],
            kind: <$ty as $crate::modules::FromArg>::kind,
            required: $crate::args!(@required $($required)?),
            default: $crate::args!(@default $($default)?),
            doc: concat!($doc $(, "\n", $more)*),
            check: |value| <$ty as $crate::modules::FromArg>::from_arg(value).map(|_| ()),
        } ),* ];

        impl $name {
            /// Reads rendered arguments: unknown names, missing ones and wrong types are errors.
            $vis fn parse(
                map: &::serde_json::Map<String, ::serde_json::Value>,
            ) -> ::std::result::Result<Self, $crate::modules::Failure> {
                $crate::modules::args::check_names(map, ARGS)?;
                Ok(Self { $( $field: {
                    let name = $crate::arg_name!(stringify!($field));
                    let given = [name $(, $alias)*].into_iter().find_map(|n| map.get(n)).filter(|v| !v.is_null());
                    $crate::args!(@value $ty, name, given $(, $required)? $(, = $default)?)
                }, )* })
            }
        }
    };
    (@required required) => { true };
    (@required) => { false };
    (@default $default:expr) => { stringify!($default) };
    (@default) => { "" };
    (@value $ty:ty, $name:ident, $given:ident, required) => {
        $crate::modules::args::read::<$ty>($name, $given.ok_or_else(|| {
            $crate::modules::Failure::new(format!("argument '{}' is missing", $name))
        })?)?
    };
    (@value $ty:ty, $name:ident, $given:ident, = $default:expr) => {
        match $given { Some(value) => $crate::modules::args::read::<$ty>($name, value)?, None => $default }
    };
    (@value $ty:ty, $name:ident, $given:ident) => {
        $crate::modules::args::read::<$ty>($name, $given.unwrap_or(&::serde_json::Value::Null))?
    };
}

/// The argument's name: Rust's raw identifiers (`r#type`) and a trailing `_` are taken off.
#[macro_export]
macro_rules! arg_name {
    ($name:expr) => {
        $crate::modules::args::clean_name($name)
    };
}

/// See [`arg_name!`](crate::arg_name).
pub const fn clean_name(name: &'static str) -> &'static str {
    let bytes = name.as_bytes();
    let (_, bytes) = match bytes {
        [b'r', b'#', rest @ ..] => (2, rest),
        _ => (0, bytes),
    };
    let bytes = match bytes {
        [rest @ .., b'_'] => rest,
        _ => bytes,
    };
    match std::str::from_utf8(bytes) {
        Ok(clean) => clean,
        Err(_) => name,
    }
}

/// Reads one argument.
pub fn read<T: FromArg>(name: &str, value: &Value) -> Result<T, Failure> {
    T::from_arg(value).map_err(|e| Failure::new(format!("argument '{name}': {e}")))
}

/// Declares an argument that is one of some words: `choice!(State { Present = "present", Absent = "absent" });`.
#[macro_export]
macro_rules! choice {
    ($(#[$m:meta])* $name:ident { $($variant:ident = $word:literal $(| $alias:literal)*),+ $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($variant),+ }
        impl $crate::modules::FromArg for $name {
            fn kind() -> String {
                format!("one of {}", [$($word),+].join(", "))
            }
            fn from_arg(value: &::serde_json::Value) -> ::std::result::Result<Self, String> {
                match value.as_str() {
                    $( Some($word $(| $alias)*) => Ok(Self::$variant), )+
                    _ => {
                        let mut text = $crate::modules::args::expected::<Self>(value);
                        if let Some(near) = value.as_str().and_then(|v| $crate::diag::nearest(v, [$($word),+])) {
                            text.push_str(&format!(" (did you mean '{near}'?)"));
                        }
                        Err(text)
                    }
                }
            }
        }
    };
}

#[cfg(test)]
#[allow(unreachable_pub, reason = "the macros declare for modules, which are public")]
mod tests;
