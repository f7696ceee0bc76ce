//! Every filter, test and function, by table: the expression and the JSON of its value.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{env, eval, refs, refs::Callee};
use crate::{
    diag::Span,
    vars::{Layer, Scope, Var, Vars},
};

fn scope() -> Scope {
    let mut vars = Vars::new();
    let data = json!({
        "n": 5, "s": "Hello World", "e": "", "no": null, "yes": true, "f": 2.5, "big": 18_446_744_073_709_551_615_u64,
        "l": [3, 1, 2, 3], "m": {"b": 1, "a": {"x": [1], "y": 2}},
        "hosts": [
            {"name": "a", "ip": "10.0.0.1", "up": true, "tag": {"zone": "x"}},
            {"name": "b", "ip": "10.0.0.2", "up": false, "tag": {"zone": "y"}},
            {"name": "c", "ip": "192.168.1.9", "up": true, "tag": {"zone": "x"}},
        ],
        "ok": {"failed": false, "changed": true, "skipped": false, "rc": 0},
    });
    for (name, value) in data.as_object().unwrap() {
        vars.insert(name.clone(), Var::data(value.clone(), Layer::Facts));
    }
    Scope::of(vars)
}

const TABLE: &[(&str, &str)] = &[
    // default and friends
    ("typo | default('x')", r#""x""#),
    ("typo | d('x')", r#""x""#),
    ("m.q.r.s | default('deep')", r#""deep""#),
    ("m['q'].r | default('deep')", r#""deep""#),
    ("typo.a.b is defined", "false"),
    ("typo[0].b is undefined", "true"),
    ("m.a.y | default(9)", "2"),
    ("e | default('x', true)", r#""x""#),
    ("e | default('x', boolean=true)", r#""x""#),
    ("e | default('x')", r#""""#),
    ("no | default('x')", "null"),
    ("n | mandatory", "5"),
    ("(n > 3) | ternary('a', 'b')", r#""a""#),
    ("no | ternary('a', 'b', 'c')", r#""c""#),
    // formats
    ("m | to_json", r#""{\"b\": 1, \"a\": {\"x\": [1], \"y\": 2}}""#),
    ("'é' | to_json", r#""\"\\u00e9\"""#),
    ("'é' | to_json(ensure_ascii=false)", r#""\"é\"""#),
    ("{'b': [], 'a': [1]} | to_nice_json(indent=2)", r#""{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}""#),
    ("{'b': 1} | to_nice_json", r#""{\n    \"b\": 1\n}""#),
    ("{'b': 1} | tojson", r#""{\"b\":1}""#),
    ("'{\"a\": [1, 2.5, null]}' | from_json", r#"{"a":[1,2.5,null]}"#),
    ("{'b': 1, 'a': [true]} | to_yaml | from_yaml", r#"{"a":[true],"b":1}"#),
    ("{'b': 1} | to_nice_yaml", r#""b: 1\n""#),
    ("'a: [1, yes]' | from_yaml", r#"{"a":[1,true]}"#),
    ("'häé' | b64encode", r#""aMOkw6k=""#),
    ("'aMOkw6k=' | b64decode", r#""häé""#),
    ("'a' | hash('sha256')", r#""ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb""#),
    ("'a' | hash('md5')", r#""0cc175b9c0f1b6a831c399e269772661""#),
    ("'a' | md5", r#""0cc175b9c0f1b6a831c399e269772661""#),
    ("'a' | checksum", r#""86f7e437faa5a7fce15d1ddcb9eaeaea377667b8""#),
    ("'a' | sha1 == 'a' | hash", "true"),
    // mappings
    ("{'a': {'x': 1}, 'l': [1]} | combine({'a': {'y': 2}, 'l': [2]})", r#"{"a":{"y":2},"l":[2]}"#),
    (
        "{'a': {'x': 1}, 'l': [1]} | combine({'a': {'y': 2}, 'l': [2]}, recursive=true, list_merge='append')",
        r#"{"a":{"x":1,"y":2},"l":[1,2]}"#,
    ),
    ("{'l': [1, 2]} | combine({'l': [2, 3]}, list_merge='append_rp')", r#"{"l":[1,2,3]}"#),
    ("{'l': [1, 2]} | combine({'l': [2, 3]}, list_merge='prepend')", r#"{"l":[2,3,1,2]}"#),
    ("{'a': 1} | combine({'b': 2}, {'c': 3})", r#"{"a":1,"b":2,"c":3}"#),
    ("[{'a': 1}, {'a': 2}] | combine", r#"{"a":2}"#),
    ("{'a': 1} | dict2items", r#"[{"key":"a","value":1}]"#),
    ("{'a': 1} | dict2items(key_name='k', value_name='v')", r#"[{"k":"a","v":1}]"#),
    ("[{'key': 'a', 'value': 1}] | items2dict", r#"{"a":1}"#),
    ("m | dict_keys", r#"["b","a"]"#),
    ("{'a': 7} | dict_values", "[7]"),
    ("m | dictsort | first | first", r#""a""#),
    ("m | items | first", r#"["b",1]"#),
    ("m | list", r#"["b","a"]"#),
    // lists and sets
    ("[1, [2, [3, none]]] | flatten", "[1,2,3]"),
    ("[1, [2, [3]]] | flatten(levels=1)", "[1,2,[3]]"),
    ("[none] | flatten(skip_nulls=false)", "[null]"),
    ("l | unique", "[3,1,2]"),
    ("['a', 'A'] | unique(case_sensitive=false)", r#"["a"]"#),
    ("hosts | unique(attribute='tag.zone') | map(attribute='name') | list", r#"["a","b"]"#),
    ("l | union([9, 1])", "[3,1,2,9]"),
    ("l | intersect([1, 3])", "[3,1]"),
    ("l | difference([3])", "[1,2]"),
    ("[1, 2] | symmetric_difference([2, 3])", "[1,3]"),
    ("[1, 2] | zip(['a', 'b']) | list", r#"[[1,"a"],[2,"b"]]"#),
    ("[1, 2] | zip_longest(['a'], fillvalue='-')", r#"[[1,"a"],[2,"-"]]"#),
    ("[1, 2] | product(['a', 'b'])", r#"[[1,"a"],[1,"b"],[2,"a"],[2,"b"]]"#),
    ("[1, 2, 3] | combinations(2)", "[[1,2],[1,3],[2,3]]"),
    ("l | sort", "[1,2,3,3]"),
    ("l | sort(reverse=true) | first", "3"),
    ("hosts | sort(attribute='ip') | map(attribute='name') | join", r#""abc""#),
    ("l | min", "1"),
    ("l | max", "3"),
    ("hosts | max(attribute='ip')", r#"{"name":"c","ip":"192.168.1.9","up":true,"tag":{"zone":"x"}}"#),
    ("l | sum", "9"),
    ("[{'v': 2}, {'v': 3}] | sum(attribute='v')", "5"),
    ("l | reverse | list", "[3,2,1,3]"),
    ("l | first", "3"),
    ("l | last", "3"),
    ("l | length", "4"),
    ("m | count", "2"),
    ("l | batch(3) | list", "[[3,1,2],[3]]"),
    ("[1, 2, 3] | slice(2) | list", "[[1,2],[3]]"),
    ("'abc' | list", r#"["a","b","c"]"#),
    ("[1] | chain([2]) | list", "[1,2]"),
    ("l | join(', ')", r#""3, 1, 2, 3""#),
    ("[true, none] | join('-')", r#""True-""#),
    ("hosts | join('+', attribute='name')", r#""a+b+c""#),
    ("hosts | map(attribute='tag.zone') | list", r#"["x","y","x"]"#),
    ("[{}] | map(attribute='q', default=0) | list", "[0]"),
    ("['a', 'b'] | map('upper') | list", r#"["A","B"]"#),
    ("['a1', 'b1'] | map('regex_replace', '1$', '2') | list", r#"["a2","b2"]"#),
    ("['b'] | map('extract', m) | list", "[1]"),
    ("['a'] | map('extract', m, 'y') | list", "[2]"),
    ("'a' | extract(m, ['x', 0])", "1"),
    ("l | select('gt', 1) | list", "[3,2,3]"),
    ("l | select('odd') | list", "[3,1,3]"),
    ("l | reject('equalto', 3) | list", "[1,2]"),
    ("hosts | selectattr('up') | map(attribute='name') | list", r#"["a","c"]"#),
    ("hosts | selectattr('tag.zone', '==', 'x') | map(attribute='name') | list", r#"["a","c"]"#),
    ("hosts | selectattr('name', 'in', ['b', 'c']) | map(attribute='name') | list", r#"["b","c"]"#),
    ("hosts | rejectattr('up') | map(attribute='name') | list", r#"["b"]"#),
    ("hosts | selectattr('ip', 'match', '10[.]') | list | length", "2"),
    ("hosts | groupby('tag.zone') | map('first') | list", r#"["x","y"]"#),
    ("range(3) | list", "[0,1,2]"),
    ("dict(a=1)", r#"{"a":1}"#),
    // text
    ("s | lower", r#""hello world""#),
    ("s | upper", r#""HELLO WORLD""#),
    ("'ab cd' | title", r#""Ab Cd""#),
    ("'ab' | capitalize", r#""Ab""#),
    ("' a ' | trim", r#""a""#),
    ("s | replace('o', '0')", r#""Hell0 W0rld""#),
    ("'a\nb' | indent(2)", r#""a\n  b""#),
    ("'a\nb' | indent(2, true)", r#""  a\n  b""#),
    ("'a b  c' | split", r#"["a","b","c"]"#),
    ("'a,b,c' | split(',', 1)", r#"["a","b,c"]"#),
    ("'a\nb' | splitlines", r#"["a","b"]"#),
    ("'a\nb' | lines | list", r#"["a","b"]"#),
    ("'aa bb cc' | wordwrap(5)", r#""aa bb\ncc""#),
    ("'a b' | wordcount", "2"),
    ("'x' | center(3)", r#"" x ""#),
    ("'x' | ljust(2) ~ ('x' | rjust(2))", r#""x  x""#),
    ("'hello wonderful world' | truncate(12, leeway=0)", r#""hello...""#),
    ("'%s-%d' | format('a', 3)", r#""a-3""#),
    ("'a b' | quote", r#""'a b'""#),
    (r"'it\'s' | quote", r#""'it'\"'\"'s'""#),
    ("'' | quote", r#""''""#),
    ("'a' | comment", r##""#\n# a\n#""##),
    ("'a' | comment('c')", r#""//\n// a\n//""#),
    ("'a b/c' | urlencode", r#""a%20b/c""#),
    ("'a%20b' | urldecode", r#""a b""#),
    ("'<' | escape", r#""&lt;""#),
    ("'<' | e", r#""&lt;""#),
    ("'<' | safe", r#""<""#),
    ("n | string", r#""5""#),
    ("true | string", r#""True""#),
    ("[1] | pprint", r#""[\n  1\n]""#),
    ("s | length", "11"),
    // numbers
    ("'42' | int", "42"),
    ("'x' | int", "0"),
    ("'x' | int(7)", "7"),
    ("'ff' | int(base=16)", "255"),
    ("f | int", "2"),
    ("'2.5' | float", "2.5"),
    ("-3 | abs", "3"),
    ("f | round", "2.0"),
    ("2.345 | round(1)", "2.3"),
    ("big", "18446744073709551615"),
    ("7 // 2", "3"),
    ("2 ** 40", "1099511627776"),
    ("1 / 2", "0.5"),
    ("'yes' | bool", "true"),
    ("'off' | bool", "false"),
    ("1 | bool", "true"),
    ("1536 | human_readable", r#""1.50 KB""#),
    ("'10M' | human_to_bytes", "10485760"),
    ("'1.5 GB' | human_to_bytes", "1610612736"),
    ("n | type_debug", r#""int""#),
    ("s | type_debug", r#""str""#),
    // regular expressions
    ("'abc' | regex_replace('(b)', '<\\\\1>')", r#""a<b>c""#),
    ("'abc' | regex_replace('(?P<x>b)', '<\\\\g<x>>')", r#""a<b>c""#),
    ("'aaa' | regex_replace('a', 'b', count=2)", r#""bba""#),
    ("'ABC' | regex_replace('b', 'x', ignorecase=true)", r#""AxC""#),
    ("'a.b' | regex_replace('(?<=a)[.](?=b)', '-')", r#""a-b""#),
    ("'port 8500' | regex_search('[0-9]+')", r#""8500""#),
    ("'port 8500' | regex_search('x')", "null"),
    ("'a=b' | regex_search('(.)=(.)', '\\\\2', '\\\\1')", r#"["b","a"]"#),
    ("'a1b22' | regex_findall('[0-9]+')", r#"["1","22"]"#),
    ("'a=1,b=2' | regex_findall('(.)=(.)')", r#"[["a","1"],["b","2"]]"#),
    ("'a.b' | regex_escape", r#""a\\.b""#),
    // paths
    ("'/a/b.txt' | basename", r#""b.txt""#),
    ("'/a/b.txt' | dirname", r#""/a""#),
    ("'/a/b.tar.gz' | splitext", r#"["/a/b.tar",".gz"]"#),
    ("['/a', 'b', 'c'] | path_join", r#""/a/b/c""#),
    ("'/a/b/c' | relpath('/a/x')", r#""../b/c""#),
    // addresses
    ("'10.0.0.5/24' | ipaddr('address')", r#""10.0.0.5""#),
    ("'10.0.0.5/24' | ipaddr('network')", r#""10.0.0.0""#),
    ("'10.0.0.5/24' | ipaddr('prefix')", "24"),
    ("'10.0.0.5/255.255.255.0' | ipaddr('prefix')", "24"),
    ("'10.0.0.5/24' | ipaddr('netmask')", r#""255.255.255.0""#),
    ("'10.0.0.5/24' | ipaddr('broadcast')", r#""10.0.0.255""#),
    ("'10.0.0.0/24' | ipaddr('size')", "256"),
    ("'10.0.0.0/24' | ipaddr('first_usable')", r#""10.0.0.1""#),
    ("'10.0.0.0/24' | ipaddr('last_usable')", r#""10.0.0.254""#),
    ("['10.1.1.1', '8.8.8.8', 'x'] | ipaddr('private')", r#"["10.1.1.1"]"#),
    ("['10.1.1.1', '192.168.0.1'] | ipaddr('10.0.0.0/8')", r#"["10.1.1.1"]"#),
    ("'nonsense' | ipaddr", "false"),
    ("['::1', '1.1.1.1'] | ipv4", r#"["1.1.1.1"]"#),
    ("['::1', '1.1.1.1'] | ipv6", r#"["::1"]"#),
    ("'::1' | ipwrap", r#""[::1]""#),
    ("'10.0.0.0/8' | cidr_contains('10.2.3.4')", "true"),
    ("'10.0.0.0/8' | cidr_contains(['10.2.3.4', '11.0.0.1'])", "false"),
    ("['10.0.0.1', '11.0.0.1'] | in_cidr('10.0.0.0/8')", r#"["10.0.0.1"]"#),
    ("'10.0.0.0/24' | cidr_host(5)", r#""10.0.0.5""#),
    ("'10.0.0.0/24' | cidr_host(-1)", r#""10.0.0.255""#),
    ("'10.0.0.5/24' | ansible.utils.ipaddr('prefix')", "24"),
    ("'a' | ansible.builtin.b64encode", r#""YQ==""#),
    ("typo | ansible.builtin.default('x')", r#""x""#),
    // tests
    ("'1.10.0' is version('1.9', '>=')", "true"),
    ("'1.9.0' is version('1.9', '==')", "true"),
    ("'1.9.0-rc1' is version('1.9.0', '<')", "true"),
    ("'v1.21.5' is version_compare('1.21.4', 'gt')", "true"),
    ("'foobar' is match('foo')", "true"),
    ("'foobar' is match('bar')", "false"),
    ("'foobar' is search('bar')", "true"),
    ("'foobar' is regex('B', ignorecase=true)", "true"),
    ("n is defined", "true"),
    ("typo is not defined", "true"),
    ("typo is undefined", "true"),
    ("no is none", "true"),
    ("s is string", "true"),
    ("n is number", "true"),
    ("n is integer", "true"),
    ("f is float", "true"),
    ("m is mapping", "true"),
    ("l is sequence", "true"),
    ("l is iterable", "true"),
    ("yes is boolean", "true"),
    ("yes is true", "true"),
    ("yes is false", "false"),
    ("s is truthy", "true"),
    ("e is falsy", "true"),
    ("[1] is subset([1, 2])", "true"),
    ("[1, 2] is superset([1])", "true"),
    ("l is contains(3)", "true"),
    ("m is contains('a')", "true"),
    ("3 in l", "true"),
    ("3 is in(l)", "true"),
    ("'a' in m", "true"),
    ("[true, false] is any", "true"),
    ("[true, false] is all", "false"),
    ("ok is succeeded", "true"),
    ("ok is success", "true"),
    ("ok is failed", "false"),
    ("ok is changed", "true"),
    ("ok is skipped", "false"),
    ("'10.0.0.1' is ipv4_address", "true"),
    ("'x' is ip", "false"),
    ("'/etc' is abs", "true"),
    ("3 is odd", "true"),
    ("-3 is odd", "true"),
    ("4 is even", "true"),
    ("4 is divisibleby(2)", "true"),
    ("'ab' is startingwith('a')", "true"),
    ("'ab' is endingwith('b')", "true"),
    ("'ab' is lower", "true"),
    ("'ab' is upper", "false"),
    ("1 is sameas(1)", "true"),
    ("'upper' is filter", "true"),
    ("'odd' is test", "true"),
    ("2 is gt(1)", "true"),
    // Python's methods
    ("m.get('zz', 4)", "4"),
    ("m.keys() | list", r#"["b","a"]"#),
    ("m.items() | list | length", "2"),
    ("'a,b'.split(',')", r#"["a","b"]"#),
    ("'web-1'.startswith('web')", "true"),
    ("'web-1'.endswith('2')", "false"),
    ("'{}-{}'.format('a', 1)", r#""a-1""#),
    ("' a '.strip()", r#""a""#),
    ("'a'.upper()", r#""A""#),
    ("'a-b'.replace('-', '_')", r#""a_b""#),
    ("', '.join(['a', 'b'])", r#""a, b""#),
    ("'aXb'.find('X')", "1"),
    // access
    ("l[0]", "3"),
    ("l[-1]", "3"),
    ("l[1:3]", "[1,2]"),
    ("hosts[0].tag['zone']", r#""x""#),
    ("s[0]", r#""H""#),
    ("'a' if n > 3 else 'b'", r#""a""#),
    ("1 < n <= 5", "true"),
    ("l + [9]", "[3,1,2,3,9]"),
    ("m == {'b': 1, 'a': {'x': [1], 'y': 2}}", "true"),
    ("lookup('vars', 'n')", "5"),
    ("query('vars', 'n', 'f')", "[5,2.5]"),
    ("q('vars', 'n')", "[5]"),
];

#[test]
fn values_of_all_filters_and_tests() {
    let scope = scope();
    let mut wrong = Vec::new();
    for (expression, expected) in TABLE {
        // Text is compared: 2 and 2.0 differ, and so does the order of keys.
        let expected: Value = serde_json::from_str(expected).unwrap_or_else(|e| panic!("{expected}: {e}"));
        let text = expected.to_string();
        match eval(expression, Span::NONE, &scope).map(|value| value.to_string()) {
            Ok(value) if value == text => {}
            other => wrong.push(format!("{expression}\n    want {expected}\n    have {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_name_is_in_the_table() {
    let mut used: [BTreeSet<String>; 2] = Default::default();
    for (expression, _) in TABLE {
        for (callee, name, _) in refs::expression(expression).unwrap().calls {
            match callee {
                Callee::Filter => used[0].insert(name),
                Callee::Test => used[1].insert(name),
                Callee::Function => true,
            };
        }
    }
    // Aliases share the code of the name beside them.
    let aliases = [
        "attr",
        "count",
        "equalto",
        "==",
        "ne",
        "!=",
        "lt",
        "lessthan",
        "<",
        "le",
        "<=",
        "eq",
        "greaterthan",
        ">",
        "ge",
        ">=",
        "escaped",
        "safe",
        "issubset",
        "issuperset",
        "successful",
        "failure",
        "change",
        "skip",
        "ip_address",
        "ipv4",
        "ipv6",
        "ipv6_address",
    ];
    for (callee, used) in [(Callee::Filter, &used[0]), (Callee::Test, &used[1])] {
        let untested: Vec<&String> = env::names(callee)
            .iter()
            .filter(|n| !n.contains('.') && !used.contains(*n) && !aliases.contains(&n.as_str()))
            .collect();
        assert!(untested.is_empty(), "{callee:?} without a row: {untested:?}");
    }
}

#[test]
fn nothing_undefined_passes_a_filter_or_a_test() {
    let scope = scope();
    let mut passed = Vec::new();
    for name in env::names(Callee::Filter).iter().filter(|n| !n.contains('.')) {
        if matches!(name.as_str(), "default" | "d") {
            continue;
        }
        for args in ["", "('x')", "('x', 'y')", "(2)", "([1])", "({'a': 1})"] {
            let expression = format!("typo | {name}{args}");
            if let Ok(value) = eval(&expression, Span::NONE, &scope) {
                passed.push(format!("{expression} = {value}"));
            }
        }
    }
    for name in env::names(Callee::Test).iter().filter(|n| !n.contains('.') && n.starts_with(char::is_alphabetic)) {
        if matches!(name.as_str(), "defined" | "undefined") {
            continue;
        }
        for args in ["", "('x')", "(2)", "([1])"] {
            let expression = format!("typo is {name}{args}");
            if let Ok(value) = eval(&expression, Span::NONE, &scope) {
                passed.push(format!("{expression} = {value}"));
            }
        }
    }
    assert!(passed.is_empty(), "{}", passed.join("\n"));
}

const WRONG: &[(&str, &str)] = &[
    ("'maybe' | bool", "bool: \"maybe\" is neither true nor false"),
    ("5 | from_json", "from_json: text is needed, not a number"),
    ("'{' | from_json", "from_json: this is no JSON"),
    ("'a' | hash('crc')", "hash: unknown algorithm 'crc'"),
    ("'a' | to_json(ident=2)", "to_json: unknown argument 'ident' (did you mean 'indent'?)"),
    ("'!' | b64decode", "b64decode: this is no base64"),
    ("5 | dict2items", "dict2items: a mapping is needed, not a number"),
    ("'(' | regex_search('(')", "regex_search: the pattern '(' cannot be read"),
    ("'a' | regex_replace('a', '\\\\2')", "regex_replace: the replacement names group 2, the pattern has 0"),
    ("'10.0.0.1' | ipaddr('prefx')", "ipaddr: unknown query 'prefx'"),
    ("'x' | cidr_contains('10.0.0.1')", "cidr_contains: 'x' is no network"),
    ("[] | first", "first: the list is empty"),
    ("5 is failed", "is failed: the result of a task is needed"),
    ("'1' is version('2', '~')", "is version: unknown operator '~'"),
    ("'12X' | human_to_bytes", "human_to_bytes: unknown unit 'X'"),
    ("lookup('env', 'HOME')", "lookup('env') is evaluated on the controller only"),
    ("lookup('pipe', 'date')", "unknown lookup 'pipe' (run a task with the command module"),
    ("lookup('fil', 'x')", "unknown lookup 'fil' (did you mean 'file'?)"),
    ("secret('x')", "secret('x') is evaluated on hosts only"),
    (
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!' | regex_search('((a|aa)+)(?<!b)$(?=x)\\1')",
        "regex_search: the pattern is too expensive",
    ),
    ("'x' | center(99999999)", "center: 'width' is more than 1000000"),
    ("2 ** 200", ""),
];

#[test]
fn wrong_arguments_are_told() {
    let scope = scope();
    for (expression, expected) in WRONG {
        match eval(expression, Span::NONE, &scope) {
            Err(super::EvalError::Wrong(error)) => {
                assert!(error.message.starts_with(expected), "{expression}: {}", error.message);
            }
            other => panic!("{expression}: {other:?}"),
        }
    }
}

#[test]
fn every_name_is_in_the_manual() {
    let manual =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/language-expressions.md")).unwrap();
    for callee in [Callee::Filter, Callee::Test, Callee::Function] {
        let missing: Vec<&String> = env::names(callee)
            .iter()
            .filter(|n| !n.contains('.') && !n.starts_with("__") && !manual.contains(&format!("`{n}`")))
            .collect();
        assert!(missing.is_empty(), "{callee:?} not in the manual: {missing:?}");
    }
}
