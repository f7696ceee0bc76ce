//! `template`: files from templates, rendered by the executor.

use std::path::PathBuf;

use serde_json::Value;

use super::{
    Content, Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan,
    copy::{Job, put_args, single},
    place::{self, Perms, Planner, Put, planned},
};

put_args! {
    /// Arguments of `template`.
    pub struct Args {
        /// A template from `templates/`: `.tera` files are Tera, all others Jinja.
        src []: String, required;
        /// Where the file goes. With a `/` at its end, or where a folder is, it keeps its name in it, without `.tera` or `.j2`.
        dest []: PathBuf, required;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "template",
    aliases: &[],
    summary: "Renders a template to a file, atomically",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Template,
    results: &[
        place::RESULTS,
        place::BACKUP,
        &[
            ("src", "The template, as it was named, without `.tera` or `.j2`."),
            ("checksum", "SHA-256 of what was rendered."),
        ],
    ],
    example: "- name: configuration\n  template:\n    src: consul.json.tera\n    dest: /etc/consul.d/consul.json\n    owner: consul\n    mode: \"0640\"\n    validate: consul validate %s\n",
    plan,
};

fn plan(call: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&call.args)?;
    let Some(Content::File { bytes, mode, secret }) = &call.content else {
        return Err(Failure::new(format!("the rendered template '{}' did not come along", args.src)));
    };
    let perms = Perms { mode: args.mode.clone(), owner: args.owner.clone(), group: args.group.clone() };
    let folders = Perms { mode: None, ..perms.clone() };
    let into = call.args.get("dest").and_then(Value::as_str).is_some_and(|d| d.ends_with('/'));
    let job = Job { dest: &args.dest, into, force: args.force, follow: args.follow, perms: &perms, folders: &folders };
    let put = Put {
        validate: args.validate.clone(),
        backup: args.backup,
        secret: *secret,
        confidential: args.confidential,
        source_mode: *mode,
    };
    let name = [".tera", ".j2"].iter().find_map(|suffix| args.src.strip_suffix(suffix)).unwrap_or(&args.src);
    planned(cx, || single(&job, name, bytes, put, Planner::new(cx, call.diff)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::place::testing, *};

    #[test]
    fn a_template_is_written_and_validated() {
        let folder = tempfile::tempdir().unwrap();
        let content = |text: &str| Some(Content::File { bytes: text.into(), mode: 0o644, secret: false });
        let call = |args: Value, text: &str| testing::call(&DEFINITION, args, content(text));
        let dest = folder.path().join("a.json");
        let (outcome, diffs) = testing::run_twice(
            &DEFINITION,
            &call(json!({"src": "a.json.tera", "dest": dest, "validate": "grep -q ok %s"}), "ok\n"),
        );
        assert!(outcome.changed && diffs[0].after == "ok\n");
        let failure = testing::run(
            &DEFINITION,
            &call(json!({"src": "a.json.tera", "dest": dest, "validate": "grep -q ok %s"}), "bad\n"),
        )
        .unwrap_err();
        assert!(failure.message.contains("validation of the new"), "{failure}");
        assert_eq!(std::fs::read_to_string(&dest).unwrap(), "ok\n");
        testing::run_twice(&DEFINITION, &call(json!({"src": "b.conf.j2", "dest": folder.path()}), "x"));
        assert_eq!(std::fs::read_to_string(folder.path().join("b.conf")).unwrap(), "x");
        assert!(
            plan(
                &testing::call(&DEFINITION, json!({"src": "a", "dest": "/x"}), None),
                &Cx {
                    host: &crate::host::real::Real::new(),
                    facts: &json!({}),
                    secrets: crate::secrets::grants::nobody()
                }
            )
            .is_err()
        );
    }
}
