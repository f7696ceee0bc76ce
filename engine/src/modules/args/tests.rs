//! Arguments as the macros read them.

use serde_json::json;

use super::*;

choice!(State { Present = "present", Absent = "absent" });

args! {
    /// Arguments.
    pub struct Args {
        /// Where.
        dest ["path"]: PathBuf, required;
        /// Keep a copy.
        backup []: bool = false;
        /// What.
        state []: State = State::Present;
        /// Mode.
        mode []: Option<Mode>;
        /// Kind.
        r#type []: Option<String>;
    }
}

fn map(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

#[test]
fn arguments_are_read_and_checked() {
    let args = Args::parse(&map(json!({"path": "/x", "backup": "yes", "mode": 420, "type": "a"}))).unwrap();
    assert_eq!((args.dest, args.backup, args.mode), (PathBuf::from("/x"), true, Some(Mode::Bits(0o644))));
    assert_eq!(args.state, State::Present);
    assert_eq!(args.r#type.as_deref(), Some("a"));
    let error = |value| Args::parse(&map(value)).unwrap_err();
    assert_eq!(error(json!({})).message, "argument 'dest' is missing");
    assert_eq!(error(json!({"dest": "/x", "bakup": 1})).hint.unwrap(), "did you mean 'backup'?");
    assert!(error(json!({"dest": "x"})).message.contains("absolute path"));
    assert!(error(json!({"dest": "/x", "state": "presnt"})).message.contains("did you mean 'present'"));
    assert!(error(json!({"dest": "/x", "mode": 644})).message.contains("\"0644\""));
    assert!(error(json!({"dest": "/x\u{0}"})).message.contains("NUL"));
    assert!(error(json!({"dest": "/x", "unsafe_writes": true})).hint.unwrap().contains("atomically"));
    assert_eq!(ARGS.iter().map(|a| a.name).collect::<Vec<_>>(), ["dest", "backup", "state", "mode", "type"]);
    assert_eq!(ARGS[0].doc.trim(), "Where.");
}

#[test]
fn symbolic_modes() {
    let mode = |text: &str, current| Mode::from_arg(&json!(text)).unwrap().resolve(current, 0, false);
    assert_eq!(mode("u=rw,go=r", 0o777), 0o644);
    assert_eq!(mode("a+x", 0o644), 0o755);
    assert_eq!(mode("go-rwx", 0o755), 0o700);
    assert_eq!(mode("a+X", 0o644), 0o644);
    assert_eq!(mode("g+s", 0o755), 0o2755);
    assert!(Mode::from_arg(&json!("rwx")).is_err());
}
