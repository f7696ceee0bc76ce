//! Template files of both kinds.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeSet;

use serde_json::json;

use super::{EvalError, Rendered, TemplateKind, TemplateSource, check_template, eval, render_template};
use crate::{
    diag::{Diagnostic, FileId, Sources, Span},
    node::Node,
    secrets::{
        Name, Secret,
        grants::{GrantError, Grants, Issued, SignRequest},
    },
    vars::{Binding, Layer, Scope, Var, Vars},
};
use std::{path::Path, sync::Arc};

fn scope() -> Scope {
    let data = json!({
        "name": "web", "port": 8500, "on": true, "nothing": null, "list": ["b", "a"],
        "config": {"zeta": 1, "alpha": {"k": [1, 2]}, "text": "a \"b\" <c> ü"},
    });
    let mut vars: Vars =
        data.as_object().unwrap().iter().map(|(k, v)| (k.clone(), Var::data(v.clone(), Layer::Facts))).collect();
    vars.insert(
        "later".into(),
        Var { binding: Binding::Unknown("a download".into()), origin: crate::diag::Span::NONE, layer: Layer::Facts },
    );
    Scope::of(vars)
}

fn run(kind: TemplateKind, text: &str) -> Result<Rendered, EvalError> {
    let source = TemplateSource { name: "t", file: FileId(0), text };
    render_template(kind, &source, &scope(), &|_| None)
}

fn text(kind: TemplateKind, source: &str) -> String {
    run(kind, source).unwrap().text
}

fn wrong<T: std::fmt::Debug>(result: Result<T, EvalError>) -> Diagnostic {
    match result {
        Err(EvalError::Wrong(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_extension_decides() {
    assert_eq!(TemplateKind::of(Path::new("a/consul.json.tera")), TemplateKind::Tera);
    assert_eq!(TemplateKind::of(Path::new("a/x.j2")), TemplateKind::Jinja);
    assert_eq!(TemplateKind::of(Path::new("a/x.conf")), TemplateKind::Jinja);
}

#[test]
fn jinja_has_ansibles_settings() {
    for (source, expected) in [
        ("a\n{% if on %}\nb\n{% endif %}\nc\n", "a\nb\nc\n"),
        ("  {% if on %}\nx\n  {% endif %}\n", "  x\n  "),
        ("{{ name }}\n", "web\n"),
        ("{{ name }}\n\n", "web\n\n"),
        ("no newline", "no newline"),
        ("on={{ on }} none={{ nothing }} l={{ list }}", "on=True none= l=['b', 'a']"),
        ("{% for k, v in config.items() %}{{ k }};{% endfor %}", "zeta;alpha;text;"),
        ("{% for k in list | sort %}{{ loop.index }}{{ k }}{% if not loop.last %},{% endif %}{% endfor %}", "1a,2b"),
        (
            "{{ config | to_nice_json(indent=1, ensure_ascii=false) }}",
            "{\n \"alpha\": {\n  \"k\": [\n   1,\n   2\n  ]\n },\n \"text\": \"a \\\"b\\\" <c> ü\",\n \"zeta\": 1\n}",
        ),
        ("{{ config.text }}", "a \"b\" <c> ü"),
        ("{% set ns = namespace(n=0) %}{% for i in list %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(name) }}", "<web>"),
        ("{%- raw %}{{ x }}{% endraw %}", "{{ x }}"),
        ("{{ missing.deep | default('x') }}", "x"),
        ("a\r\nb", "a\r\nb"),
    ] {
        assert_eq!(text(TemplateKind::Jinja, source), expected, "{source}");
    }
}

#[test]
fn tera_prints_maps_in_order_and_escapes_nothing() {
    for (source, expected) in [
        ("{{ config.text }}\n", "a \"b\" <c> ü\n"),
        (
            "{{ config | to_json(sort_keys=true, ensure_ascii=false) }}",
            "{\"alpha\": {\"k\": [1, 2]}, \"text\": \"a \\\"b\\\" <c> ü\", \"zeta\": 1}",
        ),
        ("{% for k, v in config %}{{ k }};{% endfor %}", "zeta;alpha;text;"),
        ("{% if on %}\nyes\n{% endif %}", "\nyes\n"),
        ("{%- if on -%}\nyes\n{%- endif -%}", "yes"),
        ("{{ list | join(sep=',') }}", "b,a"),
        ("{{ name | b64encode }}", "d2Vi"),
        ("{{ config | combine(other=dflt, recursive=true) | to_json }}", ""),
        ("{{ name | regex_replace(pattern='w(.)', replacement='\\\\1') }}", "eb"),
        ("{{ port }}", "8500"),
        ("{% if nothing %}x{% else %}y{% endif %}", "y"),
        ("{{ name | quote }}", "web"),
    ] {
        if expected.is_empty() {
            assert_eq!(wrong(run(TemplateKind::Tera, source)).message, "'dflt' is undefined");
            continue;
        }
        assert_eq!(text(TemplateKind::Tera, source), expected, "{source}");
    }
}

#[test]
fn tera_needs_every_name() {
    let sources = Sources::default();
    let source = "{% if typo %}\nx\n{% endif %}\n{{ prot }}\n{{ name }}\n";
    let file = sources.add("a.json.tera", source);
    let found = render_template(
        TemplateKind::Tera,
        &TemplateSource { name: "a.json.tera", file, text: source },
        &scope(),
        &|_| None,
    );
    let error = wrong(found);
    assert_eq!(error.message, "'prot' is undefined");
    assert_eq!(error.hint.as_deref(), Some("did you mean 'port'?"));
    assert_eq!(sources.place(error.span).unwrap(), "a.json.tera:4:4");
    assert_eq!(error.notes[0].1, "'typo' is undefined too");
    assert_eq!(sources.place(error.notes[0].0).unwrap(), "a.json.tera:1:7");
    let names = check_template(TemplateKind::Tera, &TemplateSource { name: "t", file, text: source }).unwrap();
    assert_eq!(names.required, BTreeSet::from(["name".to_owned(), "prot".to_owned(), "typo".to_owned()]));
}

#[test]
fn errors_have_line_and_column() {
    for (kind, source, place, message) in [
        (TemplateKind::Jinja, "a\nb {{ nmae }}\n", "f:2:6", "'nmae' is undefined"),
        (TemplateKind::Jinja, "a\n{% if on %}\nx\n", "f:3:", "this template cannot be read"),
        (TemplateKind::Jinja, "a\n  {{ name | lenght }}\n", "f:2:13", "unknown filter 'lenght'"),
        (TemplateKind::Jinja, "ü {{ config.alpah }}", "f:1:13", "'config.alpah' is undefined"),
        (TemplateKind::Jinja, "x\n{{ 'a' | from_json }}", "f:2:10", "from_json: this is no JSON"),
        (TemplateKind::Jinja, "{% for x in list %}\n{{ x.y }}\n{% endfor %}", "f:2:4", "'x.y' is undefined"),
        (TemplateKind::Jinja, "\n{{ typo | default(other.x) }}", "f:2:19", "'other' is undefined"),
        (TemplateKind::Tera, "a\n{{ name | lenght }}\n", "f:2:11", "unknown filter"),
        (TemplateKind::Tera, "a\n{{ config.alpah }}\n", "f:2:", "alpah"),
        (TemplateKind::Tera, "a\n{% if %}\n", "f:2:", ""),
        (TemplateKind::Tera, "{{ port | from_json }}", "f:1:", "from_json: text is needed, not a number"),
    ] {
        let sources = Sources::default();
        let file = sources.add("f", source);
        let error =
            wrong(render_template(kind, &TemplateSource { name: "f", file, text: source }, &scope(), &|_| None));
        let found = sources.place(error.span).unwrap();
        assert!(found.starts_with(place), "{source}: {found} {}", error.message);
        assert!(error.message.to_lowercase().contains(&message.to_lowercase()), "{source}: {}", error.message);
        assert!(!error.message.contains("-->"), "{source}: {}", error.message);
    }
    for kind in [TemplateKind::Jinja, TemplateKind::Tera] {
        let source = TemplateSource { name: "f", file: FileId(0), text: "x\n{{ a | lenght }}" };
        assert_eq!(check_template(kind, &source).unwrap_err().span.line, 2);
    }
}

#[test]
fn other_templates_are_drawn_in() {
    let sources = Sources::default();
    for (kind, main, other, expected) in [
        (TemplateKind::Jinja, "a{% include 'p' %}c", "<{{ name }}>\n", "a<web>\nc"),
        (TemplateKind::Jinja, "a{% include which %}c", "{{ port }}", "a8500c"),
        (TemplateKind::Jinja, "{% from 'p' import m %}{{ m(1) }}", "{% macro m(x) %}[{{ x }}]{% endmacro %}", "[1]"),
        (
            TemplateKind::Jinja,
            "{% extends 'p' %}{% block b %}new{% endblock %}",
            "<{% block b %}old{% endblock %}>",
            "<new>",
        ),
        (TemplateKind::Jinja, "a{% include 'gone' ignore missing %}c", "", "ac"),
        (TemplateKind::Jinja, "a{% include ['gone', 'p'] %}c", "B", "aBc"),
        (TemplateKind::Tera, "a{% include 'p' %}c", "<{{ name }}>\n", "a<web>\nc"),
        (
            TemplateKind::Tera,
            "{% extends 'p' %}{% block b %}new{% endblock %}",
            "<{% block b %}old{% endblock %}>",
            "<new>",
        ),
    ] {
        let file = sources.add("main", main);
        let part = sources.add("p", other);
        let loader = |name: &str| (name == "p").then(|| (part, other.to_owned()));
        let scope = scope().with(Vars::from_iter([("which".to_owned(), Var::data(json!("p"), Layer::Play))]));
        let rendered = render_template(kind, &TemplateSource { name: "main", file, text: main }, &scope, &loader);
        assert_eq!(rendered.map(|r| r.text), Ok(expected.to_owned()), "{main}");
    }
    // An error in the other file points into the other file.
    for (kind, place) in [(TemplateKind::Jinja, "p:2:4"), (TemplateKind::Tera, "p:2:4")] {
        let (main, other) = ("a{% include 'p' %}c", "x\n{{ nmae }}\n");
        let (file, part) = (sources.add("main", main), sources.add("p", other));
        let loader = |name: &str| (name == "p").then(|| (part, other.to_owned()));
        let error = wrong(render_template(kind, &TemplateSource { name: "main", file, text: main }, &scope(), &loader));
        assert_eq!(
            (sources.place(error.span).unwrap().as_str(), error.message.as_str()),
            (place, "'nmae' is undefined")
        );
        assert_eq!(error.hint.as_deref(), Some("did you mean 'name'?"));
    }
    for kind in [TemplateKind::Jinja, TemplateKind::Tera] {
        let error = wrong(run(kind, "a{% include 'gone' %}"));
        assert!(error.message.contains("gone"), "{}", error.message);
        let myself = "{% include 't' %}";
        let source = TemplateSource { name: "t", file: FileId(0), text: myself };
        wrong(render_template(kind, &source, &scope(), &|name| (name == "t").then(|| (FileId(0), myself.to_owned()))));
    }
}

#[test]
fn unknown_spreads_through_templates() {
    for kind in [TemplateKind::Jinja, TemplateKind::Tera] {
        assert_eq!(run(kind, "a {{ later }}"), Err(EvalError::Unknown("a download".into())));
        assert_eq!(run(kind, "{% if later %}{% endif %}"), Err(EvalError::Unknown("a download".into())));
    }
    let names =
        |text| check_template(TemplateKind::Jinja, &TemplateSource { name: "t", file: FileId(0), text }).unwrap();
    let found = names("{{ a.b }}{% if c %}{{ d }}{% endif %}{{ e | default(1) }}");
    assert_eq!(found.required, BTreeSet::from(["a.b".to_owned(), "c".to_owned()]));
    assert_eq!(found.optional, BTreeSet::from(["e".to_owned()]));
}

#[derive(Debug)]
struct Vault;

impl Grants for Vault {
    fn secret(&self, name: &Name) -> Result<Secret, GrantError> {
        match name.as_str() {
            "later" => Err(GrantError::NotYet("a run makes it".into())),
            "mine" => Err(GrantError::refused_with("not yours", "ask for yours")),
            name => Ok(Secret::new(format!("s3cret-{name}"))),
        }
    }

    fn sign(&self, _: &SignRequest) -> Result<Issued, GrantError> {
        Err(GrantError::refused("no"))
    }
}

#[test]
fn a_secret_marks_what_was_rendered_with_it() {
    let vault: Arc<dyn Grants> = Arc::new(Vault);
    let before = scope();
    let of = |kind, scope: &Scope, text| {
        render_template(kind, &TemplateSource { name: "t", file: FileId(0), text }, scope, &|_| None)
    };
    let scope = before.with_secrets(&vault);
    let run = |text| of(TemplateKind::Jinja, &scope, text);
    assert_eq!(run("{{ secret('k') }}"), Ok(Rendered { text: "s3cret-k".into(), secret: true }));
    assert!(scope.tainted());
    assert_eq!(run("{{ name }}"), Ok(Rendered { text: "web".into(), secret: false }));
    // A secret that another variable asks for, in our own templates and in conditions.
    let node = Node::from_value(&json!("{{ secret('k') }}"), Span::NONE);
    let vars = Vars::from_iter([
        ("raw".to_owned(), Var::raw(node, Layer::Play)),
        ("data".to_owned(), Var::data_of(json!({"x": "y"}), Layer::Registered, true)),
    ]);
    let scope = before.with(vars).with_secrets(&vault);
    let aside = scope.aside();
    assert!(eval("raw == 's3cret-k' and data.x == 'y'", Span::NONE, &aside).is_ok());
    assert!(aside.tainted() && !scope.tainted());
    for (text, shown) in [("{{ raw }}", "s3cret-k"), ("{{ data.x }}", "y")] {
        let scope = scope.with(Vars::new()).aside();
        assert_eq!(of(TemplateKind::Tera, &scope, text), Ok(Rendered { text: shown.into(), secret: true }));
        assert!(scope.tainted());
    }
    let error = |text| match eval(text, Span::NONE, &scope) {
        Err(EvalError::Wrong(error)) => (error.message, error.hint.unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    assert_eq!(eval("secret('later') or true", Span::NONE, &scope), Err(EvalError::Unknown("a run makes it".into())));
    assert_eq!(error("secret('mine')"), ("not yours".to_owned(), "ask for yours".to_owned()));
    assert!(error("secret('No Name')").0.contains("is no name of a secret"));
}

/// A template over maps with many keys, rendered by this process and by others, must give the same bytes: the order of
/// maps would otherwise restart services at every run.
#[test]
fn every_process_renders_the_same_bytes() {
    const CHILD: &str = "ROLLCALL_TEST_RENDER";
    let many: serde_json::Map<String, serde_json::Value> =
        (0..200).map(|i| (format!("key{}", (i * 7919) % 200), json!({"a": i, "b": {"c": i}}))).collect();
    let scope = Scope::of(Vars::from_iter([("many".to_owned(), Var::data(many.into(), Layer::Facts))]));
    let render = |kind, text| {
        let source = TemplateSource { name: "t", file: FileId(0), text };
        render_template(kind, &source, &scope, &|_| None).unwrap().text
    };
    let both = render(TemplateKind::Tera, "{{ many | to_json }}\n{% for k, v in many %}{{ k }} {{ v.a }},{% endfor %}")
        + &render(TemplateKind::Jinja, "{{ many }}\n{% for k in many %}{{ k }},{% endfor %}");
    if let Some(path) = std::env::var_os(CHILD) {
        std::fs::write(path, &both).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for i in 0..2 {
        let path = folder.path().join(i.to_string());
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "template::test_templates::every_process_renders_the_same_bytes"])
            .env(CHILD, &path)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        assert!(std::fs::read_to_string(&path).unwrap() == both, "process {i} rendered other bytes");
    }
}
