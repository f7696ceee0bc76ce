//! Expressions over scopes: types, laziness, strictness, places and hints of errors.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    EvalError, References, check_expression, check_text, condition, eval, expression_references, references, render,
    render_optional, render_str, text_references,
};
use crate::{
    diag::{Diagnostic, FileId, Sources, Span},
    vars::{Binding, Layer, LocalLookups, Scope, Var, Vars},
    yaml,
};

/// A scope of what a person wrote in `vars.yaml`, beside facts.
fn scope(text: &str) -> (Sources, Scope) {
    let sources = Sources::default();
    let file = sources.add("vars.yaml", text);
    let node = yaml::parse(&sources, file).unwrap();
    let mut vars = Vars::new();
    for (key, value) in node.map().unwrap_or_default() {
        vars.insert(key.name.clone(), Var::raw(value.clone(), Layer::Play));
    }
    let mut facts = Vars::new();
    let data = json!({"os": {"family": "debian", "id": "debian"}, "text": "{{ 1 + 1 }}", "cores": 2});
    facts.insert("facts".into(), Var::data(data, Layer::Facts));
    let unknown =
        Var { binding: Binding::Unknown("the result of 'make'".into()), origin: Span::NONE, layer: Layer::Registered };
    facts.insert("later".into(), unknown);
    (sources, Scope::of(facts).with(vars))
}

fn wrong<T: std::fmt::Debug>(result: Result<T, EvalError>) -> Diagnostic {
    match result {
        Err(EvalError::Wrong(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn at(sources: &Sources, error: &Diagnostic) -> String {
    sources.place(error.span).unwrap_or_default()
}

#[test]
fn one_expression_keeps_its_type_and_text_is_text() {
    let (_, scope) = scope("n: 5\nl: [1, '{{ n }}']\nm: {a: '{{ l }}'}\n");
    for (text, expected) in [
        ("{{ n }}", json!(5)),
        ("{{- n -}}", json!(5)),
        ("{{ l }}", json!([1, 5])),
        ("{{ m }}", json!({"a": [1, 5]})),
        ("{{ n }}\n", json!("5\n")),
        (" {{ n }}", json!(" 5")),
        ("{{ n }}{{ n }}", json!("55")),
        ("{{ '}}' }}", json!("}}")),
        ("{{ n == 5 }}", json!(true)),
        ("is {{ n == 5 }}", json!("is True")),
        ("none:{{ none }}.", json!("none:.")),
        ("l={{ ['a', 1, true] }}", json!("l=['a', 1, True]")),
        ("m={{ {'a': facts.cores} }}", json!("m={'a': 2}")),
        ("{% raw %}{{ n }}{% endraw %}", json!("{{ n }}")),
        ("{% for i in l %}{{ i }};{% endfor %}", json!("1;5;")),
        ("{# gone #}x", json!("x")),
        ("plain } {", json!("plain } {")),
        ("ü\u{0}{{ n }}", json!("ü\u{0}5")),
        ("{{ {'a': 1}.a }}", json!(1)),
    ] {
        assert_eq!(render_str(text, Span::NONE, &scope), Ok(expected), "{text}");
    }
}

#[test]
fn data_is_never_rendered() {
    let (_, scope) = scope("copy: '{{ facts.text }}'\nagain: '{{ copy }}'\n");
    assert_eq!(eval("again", Span::NONE, &scope), Ok(json!("{{ 1 + 1 }}")));
    assert_eq!(render_str("<{{ again }}>", Span::NONE, &scope), Ok(json!("<{{ 1 + 1 }}>")));
    assert_eq!(eval("facts", Span::NONE, &scope).unwrap()["text"], json!("{{ 1 + 1 }}"));
}

#[test]
fn only_what_is_asked_for_is_rendered() {
    let (_, scope) = scope(
        "good: 1\nbad: '{{ typo }}'\nconsul: {dir: /opt, bin: '{{ consul.dir }}/bin', broken: '{{ typo }}', n: ['{{ typo }}', 2]}\n",
    );
    assert_eq!(eval("good", Span::NONE, &scope), Ok(json!(1)));
    assert_eq!(eval("consul.bin", Span::NONE, &scope), Ok(json!("/opt/bin")));
    assert_eq!(eval("consul['bin']", Span::NONE, &scope), Ok(json!("/opt/bin")));
    assert_eq!(eval("consul.n[1]", Span::NONE, &scope), Ok(json!(2)));
    assert_eq!(eval("good == 1 or bad", Span::NONE, &scope), Ok(json!(true)));
    assert_eq!(eval("'dir' in consul and consul.dir == '/opt'", Span::NONE, &scope), Ok(json!(true)));
    // As a whole it is rendered as a whole, also where the library would look away.
    for whole in [
        "consul",
        "consul | to_json",
        "consul == {}",
        "consul.n",
        "[consul.n == [1, 2]]",
        "consul | length > 0 and consul",
    ] {
        assert_eq!(wrong(eval(whole, Span::NONE, &scope)).message, "'typo' is undefined", "{whole}");
    }
}

#[test]
fn undefined_names_are_errors_everywhere() {
    let (_, scope) = scope("x: {y: 1}\n");
    for expression in [
        "typo",
        "not typo",
        "typo != 'x'",
        "typo == 'x'",
        "typo or true",
        "typo in [1]",
        "1 in typo",
        "not x.typo",
        "x.typo == 1",
        "typo.a",
        "x.typo.a",
        "typo is none",
        "typo is string",
        "typo ~ 'a'",
        "typo + 1",
        "typo | length",
        "[typo]",
        "{'a': typo}",
        "[typo, 1] | length",
        "[x.typo] | length",
        "1 in [1, typo]",
        "[1, [typo]] | first",
        "{'a': typo} | length",
        "'a' in {'a': x.typo}",
        "(typo, 1) | length",
        "1 if [typo] else 2",
        "typo if true else 1",
        "1 if typo else 2",
        "x[typo]",
        "typo < 1",
        "x | default(1) == typo",
        "[1] | union(typo)",
        "range(typo)",
        "'a'.join(typo)",
        "typo()",
    ] {
        let error = wrong(eval(expression, Span::NONE, &scope));
        assert!(error.message.contains("typo"), "{expression}: {}", error.message);
        assert!(!error.message.contains('`'), "{expression}: {}", error.message);
    }
    for text in [
        "{{ typo }}!",
        "{% if typo %}{% endif %}",
        "{% for i in typo %}{% endfor %}",
        "{% set a = typo %}{{ a }}!",
        "a{{ 1 if false }}",
    ] {
        let found = render_str(text, Span::NONE, &scope);
        assert!(matches!(found, Err(EvalError::Wrong(_))), "{text}: {found:?}");
    }
    assert_eq!(eval("x is defined and x.y == 1", Span::NONE, &scope), Ok(json!(true)));
    assert_eq!(eval("typo is defined and typo.y == 1", Span::NONE, &scope), Ok(json!(false)));
    assert_eq!(eval("typo | default(true)", Span::NONE, &scope), Ok(json!(true)));
    assert_eq!(eval("true or typo", Span::NONE, &scope), Ok(json!(true)));
    assert_eq!(eval("[typo, x.y] | select('defined') | list", Span::NONE, &scope), Ok(json!([1])));
    assert_eq!(eval("[typo.a.b, 2] | reject('undefined') | first", Span::NONE, &scope), Ok(json!(2)));
    assert_eq!(eval("[typo | default(3), x.y] | sum", Span::NONE, &scope), Ok(json!(4)));
    let error = wrong(eval("'a' if false", Span::NONE, &scope));
    assert_eq!(error.hint.as_deref(), Some("an 'if' inside of an expression needs an 'else'"));
}

#[test]
fn hints_name_the_nearest_and_our_facts() {
    let (_, scope) = scope("consul_version: 1\nm: {}\nl: [1]\nwords: {alpha: 1}\n");
    for (expression, message, hint) in [
        ("consul_versoin", "'consul_versoin' is undefined", "did you mean 'consul_version'?"),
        ("facts.os.famly", "'facts.os.famly' is undefined", "did you mean 'family'?"),
        ("1 + facts.os['famly']", "'facts.os.famly' is undefined", "did you mean 'family'?"),
        (
            "ansible_os_family == 'Debian'",
            "'ansible_os_family' is undefined",
            "this fact is facts.os.family (lower case: 'debian', 'redhat') here",
        ),
        ("ansible_default_ipv4.address", "'ansible_default_ipv4' is undefined", "this fact is facts.default_ipv4 here"),
        (
            "ansible_eth0.ipv4",
            "'ansible_eth0' is undefined",
            "addresses of an interface are facts.addresses.by_interface.eth0 here",
        ),
        ("m.a == 1", "'m.a' is undefined", "'m' is an empty mapping"),
        ("l[3] == 1", "'l[3]' is undefined", "'l' is a list of 1"),
        ("words.zzzzzz", "'words.zzzzzz' is undefined", "known: alpha"),
        ("consul_version.a", "'consul_version.a' is undefined", "'consul_version' is a number"),
        ("facts.os | lenght", "unknown filter 'lenght'", "did you mean 'length'?"),
        ("1 is numbr", "unknown test 'numbr'", "did you mean 'number'?"),
        ("loookup('env', 'X')", "unknown function 'loookup'", "did you mean 'lookup'?"),
    ] {
        let error = wrong(eval(expression, Span::NONE, &scope));
        assert_eq!((error.message.as_str(), error.hint.as_deref()), (message, Some(hint)), "{expression}");
    }
    let error = wrong(eval("[1] | random", Span::NONE, &scope));
    assert!(error.hint.is_some_and(|h| h.contains("another value at every run")));
}

#[test]
fn errors_point_where_the_variable_stands_and_where_it_was_used() {
    let (sources, scope) =
        scope("dir: '/opt/{{ nmae }}'\nname: x\npath: '{{ dir }}/bin'\nlist:\n  - ok\n  - '{{ dir }}'\n");
    let use_file = sources.add("site.yaml", "- copy: {dest: '{{ path }}'}\n");
    let span = Span { file: use_file, line: 1, column: 16 };
    let error = wrong(render_str("{{ path }}", span, &scope));
    assert_eq!(error.message, "'nmae' is undefined");
    assert_eq!(at(&sources, &error), "vars.yaml:1:14");
    assert_eq!(error.hint.as_deref(), Some("did you mean 'name'?"));
    let notes: Vec<String> = error.notes.iter().map(|(s, t)| format!("{t} ({})", sources.place(*s).unwrap())).collect();
    assert_eq!(notes, ["'dir' is used here (vars.yaml:3:7)", "'path' is used here (site.yaml:1:16)"]);
    assert_eq!(at(&sources, &wrong(eval("list", span, &scope))), "vars.yaml:1:14");
}

#[test]
fn columns_point_into_one_line() {
    let sources = Sources::default();
    let text =
        "- when: a == 1 and typo\n- msg: \"{{ typo }}\"\n- x: a {{ typo }} b\n- y: |\n    first\n    then {{ typo }}\n";
    let file = sources.add("t.yaml", text);
    let node = yaml::parse(&sources, file).unwrap();
    let items = node.list().unwrap();
    let scope = Scope::of(Vars::from_iter([("a".to_owned(), Var::data(json!(1), Layer::Play))]));
    let when = items[0].get("when").unwrap();
    assert_eq!(at(&sources, &wrong(eval(when.as_str().unwrap(), when.span, &scope))), "t.yaml:1:20");
    assert_eq!(at(&sources, &wrong(render(items[1].get("msg").unwrap(), &scope))), "t.yaml:2:12");
    assert_eq!(at(&sources, &wrong(render(items[2].get("x").unwrap(), &scope))), "t.yaml:3:11");
    let error = wrong(render(items[3].get("y").unwrap(), &scope));
    assert_eq!(error.notes, [(Span::NONE, "in line 2 of this text: then {{ typo }}".to_owned())]);
    let bad = check_expression("a == 1 && true", when.span).unwrap_err();
    assert_eq!((at(&sources, &bad), bad.hint.as_deref()), ("t.yaml:1:16".to_owned(), Some("write 'and'")));
    let bad = check_expression("a | lenght > 1", when.span).unwrap_err();
    assert_eq!((at(&sources, &bad).as_str(), bad.message.as_str()), ("t.yaml:1:13", "unknown filter 'lenght'"));
    let bad = check_expression("items | map('upcase') | list", when.span).unwrap_err();
    assert_eq!(bad.message, "unknown filter 'upcase'");
    let bad = check_text("x {{ a | lenght }}", when.span).unwrap_err();
    assert_eq!(bad.hint.as_deref(), Some("did you mean 'length'?"));
    assert!(check_text("x {{ a ", when.span).is_err());
    assert!(check_text("{% if a %}x", when.span).is_err());
    assert!(check_expression("a is version('1', '>=') and lookup('env', 'HOME') | length > 0", when.span).is_ok());
}

#[test]
fn cycles_are_told_with_all_places() {
    let (sources, scope) = scope("a: '{{ b }}'\nb: 'x{{ c.d }}'\nc:\n  d: '{{ a }}'\nself: '{{ self }}'\n");
    let error = wrong(eval("a", Span::NONE, &scope));
    assert_eq!(error.message, "variables depend on each other: a -> b -> c.d -> a");
    assert_eq!(at(&sources, &error), "vars.yaml:1:4");
    let places: Vec<String> = error.notes.iter().map(|(s, _)| sources.place(*s).unwrap()).collect();
    assert_eq!(places, ["vars.yaml:2:4", "vars.yaml:4:6"]);
    assert_eq!(wrong(eval("self", Span::NONE, &scope)).message, "variables depend on each other: self -> self");
}

#[test]
fn unknown_spreads_and_is_never_guessed() {
    let (_, scope) = scope("uses: 'x{{ later.rc }}'\nmap: {a: '{{ later }}', b: 1}\n");
    let unknown = Err(EvalError::Unknown("the result of 'make'".into()));
    for expression in [
        "later",
        "later is defined",
        "later is not defined",
        "later | default('x')",
        "later.rc == 0",
        "uses",
        "uses | length",
        "map",
        "map.a",
        "not later",
        "later.stdout.x | default('y')",
        "map == {}",
    ] {
        assert_eq!(eval(expression, Span::NONE, &scope), unknown, "{expression}");
    }
    assert_eq!(eval("map.b", Span::NONE, &scope), Ok(json!(1)));
    assert_eq!(eval("false and later", Span::NONE, &scope), Ok(json!(false)));
    assert_eq!(condition("later.changed", Span::NONE, &scope), Err(EvalError::Unknown("the result of 'make'".into())));
}

#[test]
fn conditions_are_booleans() {
    let (_, scope) = scope("n: 1\ns: 'yes'\nl: []\nb: '{{ n == 1 }}'\nz: null\n");
    assert_eq!(condition("b", Span::NONE, &scope), Ok(true));
    assert_eq!(condition("not b", Span::NONE, &scope), Ok(false));
    assert_eq!(condition("s | bool", Span::NONE, &scope), Ok(true));
    for (expression, found) in
        [("n", "the number 1"), ("s", "the string \"yes\""), ("l", "the list []"), ("z", "nothing")]
    {
        let error = wrong(condition(expression, Span::NONE, &scope));
        assert_eq!(error.message, format!("a condition must give true or false, this gives {found}"));
        assert!(error.hint.is_some());
    }
}

#[test]
fn omit_leaves_an_argument_out() {
    let (sources, scope) = scope("mode: '{{ wanted | default(omit) }}'\nargs: {a: 1, mode: '{{ mode }}'}\n");
    let file = sources
        .add("t.yaml", "{dest: /x, mode: '{{ mode }}', owner: '{{ o | default(omit) }}', list: ['{{ mode }}', 1]}");
    let node = yaml::parse(&sources, file).unwrap();
    assert_eq!(render(&node, &scope), Ok(json!({"dest": "/x", "list": [1]})));
    assert_eq!(render_optional(node.get("mode").unwrap(), &scope), Ok(None));
    assert_eq!(eval("args", Span::NONE, &scope), Ok(json!({"a": 1})));
    assert!(wrong(render_str("x{{ mode }}", Span::NONE, &scope)).message.contains("'omit' can only be"));
    wrong(render(node.get("mode").unwrap(), &scope));
}

#[test]
fn keys_are_rendered_too() {
    let (sources, scope) = scope("k: name\n");
    let file = sources.add("t.yaml", "{'{{ k }}': 1, '{{ k }}_2': 2}");
    let node = yaml::parse(&sources, file).unwrap();
    assert_eq!(render(&node, &scope), Ok(json!({"name": 1, "name_2": 2})));
}

#[test]
fn lookups_are_answered_where_they_are_allowed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("motd"), "hi\n{{ x }}\n").unwrap();
    let (_, scope) = scope("home: \"{{ lookup('env', 'CARGO_MANIFEST_DIR') }}\"\n");
    let error = wrong(eval("home", Span::NONE, &scope));
    assert!(error.message.starts_with("lookup('env') is evaluated on the controller only"), "{}", error.message);
    let scope = scope.with_lookups(Arc::new(LocalLookups::new(folder.path())));
    assert_eq!(eval("home", Span::NONE, &scope), Ok(json!(std::env::var("CARGO_MANIFEST_DIR").unwrap())));
    assert_eq!(eval("lookup('env', 'ROLLCALL_NOT_SET')", Span::NONE, &scope), Ok(json!("")));
    assert_eq!(eval("lookup('env', 'ROLLCALL_NOT_SET', default='d')", Span::NONE, &scope), Ok(json!("d")));
    assert_eq!(eval("lookup('ansible.builtin.file', 'motd')", Span::NONE, &scope), Ok(json!("hi\n{{ x }}")));
    assert_eq!(eval("query('file', 'motd')", Span::NONE, &scope), Ok(json!(["hi\n{{ x }}"])));
    assert!(wrong(eval("lookup('file', 'none')", Span::NONE, &scope)).message.contains("cannot read"));
    assert!(wrong(eval("secret('x')", Span::NONE, &scope)).message.contains("evaluated on hosts only"));
}

#[test]
fn references_tell_required_from_optional() {
    let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let find = |e: &str| expression_references(e, Span::NONE).unwrap();
    assert_eq!(
        find("a.b == c['d'].e and f | default(g.h) and i is defined and i.j == 1"),
        References { required: set(&["a.b", "c.d.e"]), conditional: set(&["g.h"]), optional: set(&["f", "i", "i.j"]) }
    );
    assert_eq!(find("x if y else z").required, set(&["y"]));
    assert_eq!(find("x if y else z").conditional, set(&["x", "z"]));
    assert_eq!(find("hostvars[h].ip").required, set(&["h", "hostvars"]));
    assert_eq!(find("a.get('b') | map(attribute='c') | list").required, set(&["a"]));
    assert_eq!(find("lookup('env', n) ~ omit").required, set(&["n"]));
    assert_eq!(find("a.b.c | d(1)").optional, set(&["a.b.c"]));
    let text = "{% for x in xs %}{{ x.a }}{{ y }}{% endfor %}{% set z = w %}{{ z }}{{ r }}{% if s %}{{ t }}{% endif %}";
    assert_eq!(
        text_references(text, Span::NONE).unwrap(),
        References { required: set(&["r", "s", "w", "xs"]), conditional: set(&["t", "y"]), optional: set(&[]) }
    );
    assert_eq!(text_references("no expression", Span::NONE), Ok(References::default()));
    assert_eq!(references("facts.os.family == x | default(1)", Span::NONE).unwrap(), set(&["facts.os.family", "x"]));
    assert!(expression_references("a ==", Span::NONE).is_err());
}

#[test]
fn large_and_strange_values_survive() {
    let long = "ä".repeat(1 << 19);
    let vars = Vars::from_iter([
        ("long".to_owned(), Var::data(json!(long), Layer::Facts)),
        ("odd".to_owned(), Var::data(json!("a\u{0}b\u{1f600}\r\n"), Layer::Facts)),
        ("max".to_owned(), Var::data(json!([u64::MAX, i64::MIN, 1.5e300]), Layer::Facts)),
    ]);
    let scope = Scope::of(vars);
    assert_eq!(eval("long", Span::NONE, &scope), Ok(json!(long)));
    assert_eq!(eval("long | length", Span::NONE, &scope), Ok(json!(1 << 19)));
    assert_eq!(render_str("<{{ odd }}>", Span::NONE, &scope), Ok(json!("<a\u{0}b\u{1f600}\r\n>")));
    assert_eq!(eval("max | list", Span::NONE, &scope), Ok(json!([u64::MAX, i64::MIN, 1.5e300])));
    assert_eq!(eval("max[0]", Span::NONE, &scope).unwrap().to_string(), u64::MAX.to_string());
    wrong(eval("max[0] * max[0]", Span::NONE, &scope));
}

#[test]
fn hostvars_of_a_thousand_hosts_are_not_copied() {
    let hosts: serde_json::Map<String, Value> = (0..1000)
        .map(|i| {
            (
                format!("h{i}"),
                json!({"ip": format!("10.0.{}.{}", i / 250, i % 250), "tags": (0..50).collect::<Vec<_>>()}),
            )
        })
        .collect();
    let scope = Scope::of(Vars::from_iter([("hostvars".to_owned(), Var::data(Value::Object(hosts), Layer::Magic))]));
    let start = std::time::Instant::now();
    for i in 0..1000 {
        let expression = format!("hostvars['h{i}'].ip");
        assert!(eval(&expression, Span::NONE, &scope).is_ok());
    }
    // A copy of all of it takes milliseconds each time: seconds in all.
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    let all = eval("hostvars.values() | map(attribute='ip') | list | length", Span::NONE, &scope);
    assert_eq!(all, Ok(json!(1000)));
}

#[test]
fn depth_and_work_are_bounded() {
    use std::fmt::Write as _;
    let chain = (0..200).fold(String::new(), |mut text, i| {
        let _ = writeln!(text, "v{i}: 'x{{{{ v{} }}}}'", i + 1);
        text
    });
    let (_, scope) = scope(&format!("{chain}v200: end\n"));
    assert!(wrong(eval("v0", Span::NONE, &scope)).message.starts_with("more than 40 variables in a row"));
    assert_eq!(eval("v170", Span::NONE, &scope), Ok(json!(format!("{}end", "x".repeat(30)))));
    // Long is not deep.
    let list = format!("[{}1]", "facts.cores + 1, ".repeat(5000));
    assert_eq!(eval(&format!("{list} | length"), Span::NONE, &scope), Ok(json!(5001)));
    assert_eq!(eval(&format!("1{}", " + 1".repeat(100)), Span::NONE, &scope), Ok(json!(101)));
    assert!(wrong(eval(&format!("1{}", " + 1".repeat(500)), Span::NONE, &scope)).message.contains("nested too deeply"));
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(wrong(render_str(loops, Span::NONE, &scope)).message.contains("too long"));
    let recursion = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    wrong(render_str(recursion, Span::NONE, &scope));
    for bracket in [
        "(",
        "[",
        "{{",
        "-",
        "not ",
        "a.",
        "a|",
        "{'a':",
        "a if ",
        "'a' ~ ",
        "1 + ",
        "not(",
        "a(",
        "a[",
        "a is b and ",
        "a < ",
        "a ** ",
        "{{ x }}",
        "{% if a %}",
        "{% if a %}{% elif b %}",
        "{% elif b %}",
        "{% for a in l %}",
        "{% set a %}",
        "{% with a = 1 %}",
        "{% macro m() %}",
        "{% call m() %}",
        "{% filter upper %}",
        "{% block a %}",
    ] {
        let deep = bracket.repeat(5000);
        let _ = eval(&deep, Span::NONE, &scope);
        let _ = eval(&format!("{deep}1"), Span::NONE, &scope);
        let _ = render_str(&format!("{{{{ {deep} }}}}x"), Span::NONE, &scope);
        let _ = check_text(&format!("{{{{ {deep}1 }}}}x"), Span::NONE);
        let _ = expression_references(&format!("{deep}1"), Span::NONE);
        for text in [&deep, &format!("{{% if a %}}{deep}"), &format!("{{{{ {deep}1 }}}}")] {
            let _ = check_text(text, Span::NONE);
            let _ = render_str(text, Span::NONE, &scope);
            let source = super::TemplateSource { name: "t", file: FileId(0), text };
            let _ = super::check_template(super::TemplateKind::Tera, &source);
        }
    }
}

/// What expressions and templates are made of, and what does not belong there.
const PARTS: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "a",
    "b.c",
    "facts.os",
    "[0]",
    "[",
    "]",
    "(",
    ")",
    "|",
    "default",
    "('x')",
    " is ",
    "defined",
    "not ",
    " and ",
    " or ",
    " if ",
    " else ",
    "for x in l",
    "endfor",
    "endif",
    "set x = 1",
    "'",
    "\"",
    "\\",
    "1",
    "-",
    "+",
    "*",
    "/",
    "~",
    ",",
    ":",
    "{",
    "}",
    "\n",
    "\u{0}",
    "ü",
    "🦀",
    "map",
    "upper",
    "regex_replace",
    "combine",
    "macro m()",
    "endmacro",
    "include 'x'",
    "raw",
    "endraw",
    "**",
    "==",
    "<",
    "=",
    "version",
    "lookup",
    "omit",
    "99999999999999999999",
    "1e400",
    "0x",
    ".",
    "..",
    "- %}",
    "{%- ",
    "block b",
    "endblock",
    "loop",
    "l",
];

proptest::proptest! {
    #![proptest_config(crate::fuzz::cases(4000))]

    #[test]
    fn random_text_never_panics(parts in proptest::collection::vec(proptest::sample::select(PARTS), 0..14)) {
        let (_, scope) = scope("a: '{{ b.c }}'\nb: {c: 1}\nl: [1, '{{ a }}']\nx: '{{ x }}'\n");
        let span = Span { file: FileId(0), line: 1, column: 1 };
        let text = parts.concat();
        let _ = eval(&text, span, &scope);
        let _ = render_str(&text, span, &scope);
        let _ = render_str(&format!("{{{{ {text} }}}}"), span, &scope);
        let _ = check_expression(&text, span);
        let _ = text_references(&text, span);
        let source = super::TemplateSource { name: "t", file: FileId(0), text: &text };
        for kind in [super::TemplateKind::Jinja, super::TemplateKind::Tera] {
            let _ = super::check_template(kind, &source);
            let _ = super::render_template(kind, &source, &scope, &|_| None);
        }
    }
}

proptest::proptest! {
    #![proptest_config(crate::fuzz::cases(1000))]

    #[test]
    fn text_without_markup_is_itself(text in "[^{]*") {
        proptest::prop_assert_eq!(render_str(&text, Span::NONE, &Scope::new()), Ok(Value::String(text.clone())));
    }

    #[test]
    fn any_text_survives_a_variable(text in ".*") {
        let scope = Scope::of(Vars::from_iter([("v".to_owned(), Var::data(json!(text), Layer::Facts))]));
        proptest::prop_assert_eq!(eval("v", Span::NONE, &scope), Ok(json!(text)));
        proptest::prop_assert_eq!(render_str("a{{ v }}b", Span::NONE, &scope), Ok(json!(format!("a{text}b"))));
        proptest::prop_assert_eq!(eval("v | to_json | from_json", Span::NONE, &scope), Ok(json!(text)));
        proptest::prop_assert_eq!(eval("v | b64encode | b64decode", Span::NONE, &scope), Ok(json!(text)));
    }
}
