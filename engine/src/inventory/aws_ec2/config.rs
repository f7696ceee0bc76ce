//! The file: every key of the amazon.aws collection's `aws_ec2` plugin that is known here, with its place.

use serde_json::Value;

use super::{
    hostnames::{self, Preference},
    query::{Account, FilterSet, Query},
};
use crate::{
    diag::{Diagnostic, Diagnostics, Span, nearest},
    node::{Fields, Key, Kind, Node},
    template::{self, EvalError},
    vars::Scope,
};

/// An expression and its place.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    /// Without braces.
    pub(super) text: String,
    pub(super) span: Span,
}

/// An entry of `keyed_groups`.
#[derive(Clone, Debug)]
pub(super) struct KeyedGroup {
    pub(super) key: Expression,
    pub(super) prefix: Value,
    pub(super) separator: Value,
    pub(super) parent: Option<Node>,
    pub(super) default_value: Option<Value>,
    pub(super) trailing_separator: bool,
}

/// A condition of `groups`.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    Always(bool),
    When(Expression),
}

/// What an `aws_ec2` file says.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to ask.
    pub query: Query,
    /// Where the account is named (the profile, the role), for messages about it.
    pub(super) account_span: Span,
    pub(super) hostnames: Vec<Preference>,
    pub(super) keyed_groups: Vec<KeyedGroup>,
    pub(super) groups: Vec<(Key, Condition)>,
    pub(super) compose: Vec<(Key, Expression)>,
    pub(super) strict: bool,
    pub(super) leading_separator: bool,
    pub(super) use_extra_vars: bool,
    pub(super) allow_duplicated_hosts: bool,
    pub(super) prefix: String,
    pub(super) suffix: String,
    /// Keep answers, for how many seconds (0: for ever).
    pub(super) cache: Option<u64>,
}

/// Keys of the plugin that are not taken, and why.
const REFUSED: &[(&str, &str)] = &[
    ("aws_access_key", KEYS),
    ("aws_access_key_id", KEYS),
    ("access_key", KEYS),
    ("aws_secret_key", KEYS),
    ("aws_secret_access_key", KEYS),
    ("secret_key", KEYS),
    ("aws_session_token", KEYS),
    ("session_token", KEYS),
    ("aws_security_token", KEYS),
    ("security_token", KEYS),
    ("use_contrib_script_compatible_sanitization", "such group names cannot be used in patterns; write the new names"),
    ("use_contrib_script_compatible_ec2_tag_keys", "use tags.NAME instead of ec2_tag_NAME"),
    ("use_ssm_inventory", "Systems Manager is not asked; facts come from the agent"),
    ("route53_enabled", "Route 53 is not asked; use hostnames: [dns-name]"),
    ("route53_hostnames", "Route 53 is not asked; use hostnames: [dns-name]"),
    ("route53_excluded_zones", "Route 53 is not asked; use hostnames: [dns-name]"),
    ("iam_role_arn", "its name is assume_role_arn"),
    ("validate_certs", "certificates are always checked"),
    ("aws_ca_bundle", "put the certificate into the system's store"),
    ("aws_config", "set timeouts and proxies in the AWS configuration file"),
    ("debug_botocore_endpoint_logs", "use -vvv"),
];
const KEYS: &str =
    "keys do not belong into a file: put them into a profile (aws configure --profile NAME) and write profile: NAME";

impl Config {
    /// Reads a file's tree; with the warnings. All errors come together. `scope` serves the expressions in `profile`,
    /// `regions`, `filters` and the like.
    pub fn read(root: &Node, scope: &Scope) -> Result<(Self, Vec<Diagnostic>), Diagnostics> {
        let mut reader = Reader { out: Diagnostics::default(), scope };
        let config = reader.config(root);
        match config {
            Err(e) => {
                reader.out.push(e);
                Err(reader.out)
            }
            Ok(_) if reader.out.has_errors() => Err(reader.out),
            Ok(config) => Ok((config, reader.out.0)),
        }
    }
}

struct Reader<'a> {
    out: Diagnostics,
    scope: &'a Scope,
}

impl Reader<'_> {
    fn config(&mut self, root: &Node) -> Result<Config, Diagnostic> {
        let mut fields = Fields::new("aws_ec2 inventory", root)?;
        fields.take("plugin");
        let account_node = fields.take("assume_role_arn");
        let profile_node = self.alias(&mut fields, &["profile", "aws_profile", "boto_profile"]);
        let endpoint = self.alias(&mut fields, &["endpoint_url", "aws_endpoint_url", "ec2_url"]);
        let account_span = profile_node.or(account_node).map_or(root.span, |n| n.span);
        let account = Account {
            profile: self.text(profile_node),
            assume_role_arn: self.text(account_node),
            endpoint_url: self.text(endpoint),
        };
        let mut include = Vec::new();
        include.extend(fields.take("filters").map(|n| self.filters(n)));
        include.extend(self.filter_list(fields.take("include_filters")));
        let exclude = self.filter_list(fields.take("exclude_filters"));
        let query = Query {
            account,
            regions: self.regions(fields.take("regions")),
            include: include.into_iter().filter(|set| !set.is_empty()).collect(),
            exclude,
            strict_permissions: self.boolean(fields.take("strict_permissions"), true),
        };
        let hostnames = match fields.take("hostnames") {
            Some(node) => hostnames::read(node, &mut self.out),
            None => Vec::new(),
        };
        let config = Config {
            query,
            account_span,
            hostnames: if hostnames.is_empty() { hostnames::defaults() } else { hostnames },
            keyed_groups: self.keyed_groups(fields.take("keyed_groups")),
            groups: self.groups(fields.take("groups")),
            compose: self.compose(fields.take("compose")),
            strict: self.boolean(fields.take("strict"), false),
            leading_separator: self.boolean(fields.take("leading_separator"), true),
            use_extra_vars: self.boolean(fields.take("use_extra_vars"), false),
            allow_duplicated_hosts: self.boolean(fields.take("allow_duplicated_hosts"), false),
            prefix: self.text(fields.take("hostvars_prefix")).unwrap_or_default(),
            suffix: self.text(fields.take("hostvars_suffix")).unwrap_or_default(),
            cache: self.cache(&mut fields),
        };
        self.refused(&mut fields);
        fields.finish(&mut self.out);
        Ok(config)
    }

    /// Keys that Ansible knows and we do not take.
    fn refused(&mut self, fields: &mut Fields<'_>) {
        for (name, reason) in REFUSED {
            let Some((key, value)) = fields.take_dynamic(name) else { continue };
            // Turned off, it changes nothing.
            if matches!(value.kind, Kind::Bool(false)) && !name.contains("validate") {
                continue;
            }
            self.out.push(Diagnostic::error(key.span, format!("'{name}' is not taken here")).hint(*reason));
        }
    }

    fn alias<'n>(&mut self, fields: &mut Fields<'n>, names: &[&'static str]) -> Option<&'n Node> {
        let mut found: Option<(&'static str, &'n Node)> = None;
        for name in names {
            let Some(node) = fields.take(name) else { continue };
            if let Some((first, place)) = found {
                self.out.push(
                    Diagnostic::error(node.span, format!("'{name}' and '{first}' say the same thing"))
                        .note(place.span, "the other one is here"),
                );
            }
            found = Some((name, node));
        }
        found.map(|(_, node)| node)
    }

    fn render(&mut self, node: &Node) -> Option<Value> {
        match template::render(node, self.scope) {
            Ok(value) => Some(value),
            Err(EvalError::Wrong(e)) => {
                self.out.push(if e.span.is_none() { Diagnostic { span: node.span, ..e } } else { e });
                None
            }
            Err(EvalError::Unknown(why)) => {
                self.out.push(Diagnostic::error(node.span, format!("this depends on {why}")));
                None
            }
        }
    }

    fn text(&mut self, node: Option<&Node>) -> Option<String> {
        let node = node?;
        match self.render(node)? {
            Value::Null => None,
            Value::String(s) if s.is_empty() => None,
            Value::String(s) => Some(s),
            Value::Number(n) => Some(n.to_string()),
            _ => {
                self.out.push(node.expected("a string"));
                None
            }
        }
    }

    fn boolean(&mut self, node: Option<&Node>, otherwise: bool) -> bool {
        let Some(node) = node else { return otherwise };
        node.boolean().unwrap_or_else(|e| {
            self.out.push(e);
            otherwise
        })
    }

    fn cache(&mut self, fields: &mut Fields<'_>) -> Option<u64> {
        let on = self.boolean(fields.take("cache"), false);
        let timeout = fields.take("cache_timeout").and_then(|node| match node.kind {
            Kind::Int(n) if n >= 0 => u64::try_from(n).ok(),
            _ => {
                self.out.push(node.expected("a number of seconds"));
                None
            }
        });
        // Ours is a file per query; these only choose among Ansible's.
        if let Some(plugin) = fields.take("cache_plugin")
            && !matches!(plugin.as_str(), Some("jsonfile" | "ansible.builtin.jsonfile" | "rollcall"))
        {
            self.out.push(
                Diagnostic::error(plugin.span, "the cache is always kept in files")
                    .hint("leave 'cache_plugin' out, or write jsonfile"),
            );
        }
        for name in ["cache_connection", "cache_prefix"] {
            if let Some((key, _)) = fields.take_entry(name) {
                self.out.push(
                    Diagnostic::warning(key.span, format!("'{name}' has no effect"))
                        .hint("the cache is in the user's cache folder"),
                );
            }
        }
        on.then_some(timeout.unwrap_or(3600))
    }

    fn regions(&mut self, node: Option<&Node>) -> Vec<String> {
        let Some(node) = node else { return Vec::new() };
        let Some(value) = self.render(node) else { return Vec::new() };
        let items: Vec<Value> = match value {
            Value::Array(items) => items,
            Value::String(text) => text.split(',').map(|s| Value::String(s.trim().to_owned())).collect(),
            _ => {
                self.out.push(node.expected("a list of regions"));
                return Vec::new();
            }
        };
        let mut regions: Vec<String> = Vec::new();
        for item in items {
            match item {
                Value::String(name) if !name.trim().is_empty() => {
                    if !regions.contains(&name) {
                        regions.push(name);
                    }
                }
                _ => self.out.push(Diagnostic::error(node.span, "a region must be a name like eu-west-1")),
            }
        }
        regions
    }

    fn filter_list(&mut self, node: Option<&Node>) -> Vec<FilterSet> {
        let Some(node) = node else { return Vec::new() };
        match node.list() {
            Ok(items) => items.iter().map(|item| self.filters(item)).collect(),
            Err(e) => {
                self.out.push(e.hint("write a list of filters: [{tag:Role: web}, {tag:Role: db}]"));
                Vec::new()
            }
        }
    }

    fn filters(&mut self, node: &Node) -> FilterSet {
        let entries = match node.map() {
            Ok(entries) => entries,
            Err(e) => {
                self.out.push(e.hint("filters are a mapping: {tag:Role: web, instance-state-name: running}"));
                return Vec::new();
            }
        };
        let mut set = Vec::new();
        for (key, value) in entries {
            self.check_filter(key);
            let rendered = self.render(value);
            let items = match rendered {
                None => continue,
                Some(Value::Array(items)) => items,
                Some(one) => vec![one],
            };
            let mut values = Vec::new();
            for item in items {
                match item {
                    Value::String(s) => values.push(s),
                    Value::Bool(b) => values.push(b.to_string()),
                    Value::Number(n) => values.push(n.to_string()),
                    _ => self.out.push(
                        Diagnostic::error(value.span, format!("filter '{}' needs a text or a list of texts", key.name))
                            .hint("to ask for any value of a tag, write tag-key: NAME"),
                    ),
                }
            }
            if values.is_empty() && !self.out.has_errors() {
                self.out.push(Diagnostic::error(value.span, format!("filter '{}' has no value", key.name)));
            }
            set.push((key.name.clone(), values));
        }
        set
    }

    fn check_filter(&mut self, key: &Key) {
        let extra = [
            "tag-key",
            "tag-value",
            "metadata-options.http-tokens",
            "metadata-options.http-endpoint",
            "group-id",
            "group-name",
            "capacity-reservation-id",
            "hibernation-options.configured",
            "outpost-arn",
            "network-interface.requester-id",
            "network-interface.requester-managed",
            "current-instance-boot-mode",
            "boot-mode",
            "platform-details",
            "instance-profile-id",
            "iam-instance-profile.id",
            "iam-instance-profile.name",
            "ipv6-address",
            "enclave-options.enabled",
            "network-interface.ipv6-address",
            "tpm-support",
        ];
        let known = || hostnames::ATTRIBUTES.iter().map(|(name, _)| *name).chain(extra);
        if key.name.starts_with("tag:") || known().any(|name| name == key.name) {
            return;
        }
        // AWS adds filters over time, so an unknown one may be right.
        let warning = Diagnostic::warning(key.span, format!("'{}' is no filter that we know", key.name));
        self.out.push(
            match (key.name.strip_prefix("tag-").or(key.name.strip_prefix("tag_")), nearest(&key.name, known())) {
                (Some(tag), _) => warning.hint(format!("did you mean 'tag:{tag}'?")),
                (None, Some(near)) => warning.hint(format!("did you mean '{near}'?")),
                (None, None) => warning,
            },
        );
    }

    fn expression(&mut self, node: &Node) -> Option<Expression> {
        let text = node.as_str()?;
        if let Err(e) = template::check_expression(text, node.span) {
            self.out.push(e);
            return None;
        }
        Some(Expression { text: text.to_owned(), span: node.span })
    }

    fn compose(&mut self, node: Option<&Node>) -> Vec<(Key, Expression)> {
        let mut found = Vec::new();
        for (key, value) in self.mapping(node, "compose", "ansible_host: private_ip_address") {
            if value.as_str().is_some() {
                found.extend(self.expression(value).map(|e| (key.clone(), e)));
            } else {
                self.out.push(
                    Diagnostic::warning(
                        value.span,
                        format!("'{}' is not set: {} is no expression", key.name, value.describe()),
                    )
                    .hint("write the expression in quotes: '22', \"'text'\""),
                );
            }
        }
        found
    }

    fn groups(&mut self, node: Option<&Node>) -> Vec<(Key, Condition)> {
        let mut found = Vec::new();
        for (key, value) in self.mapping(node, "groups", "web: tags.Role == 'web'") {
            match &value.kind {
                Kind::Bool(b) => found.push((key.clone(), Condition::Always(*b))),
                Kind::Str(_) => found.extend(self.expression(value).map(|e| (key.clone(), Condition::When(e)))),
                _ => self.out.push(value.expected("a condition (an expression that gives true or false)")),
            }
        }
        found
    }

    fn mapping<'n>(&mut self, node: Option<&'n Node>, name: &str, example: &str) -> &'n [(Key, Node)] {
        let Some(node) = node else { return &[] };
        node.map().unwrap_or_else(|e| {
            self.out.push(e.hint(format!("'{name}' holds entries like {example}")));
            &[]
        })
    }

    fn keyed_groups(&mut self, node: Option<&Node>) -> Vec<KeyedGroup> {
        let Some(node) = node else { return Vec::new() };
        let items = match node.list() {
            Ok(items) => items,
            Err(e) => {
                self.out.push(e.hint("write a list: [{key: tags.Role, prefix: role}]"));
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for item in items {
            match self.keyed_group(item) {
                Ok(group) => found.extend(group),
                Err(e) => self.out.push(e),
            }
        }
        found
    }

    fn keyed_group(&mut self, item: &Node) -> Result<Option<KeyedGroup>, Diagnostic> {
        let mut fields = Fields::new("keyed group", item)?;
        let key = fields.require("key")?;
        key.string().map_err(|e| e.hint("'key' is an expression: key: tags.Role"))?;
        let prefix = self.affix(&mut fields, "prefix", "");
        let separator = self.affix(&mut fields, "separator", "_");
        let parent = fields.take("parent_group").cloned();
        let default_value = fields.take("default_value");
        let trailing = fields.take("trailing_separator");
        fields.finish(&mut self.out);
        if let (Some(default), Some(trailing)) = (default_value, trailing) {
            return Err(Diagnostic::error(
                trailing.span,
                "'trailing_separator' and 'default_value' exclude each other",
            )
            .note(default.span, "the other one is here"));
        }
        let trailing_separator = self.boolean(trailing, true);
        Ok(self.expression(key).map(|key| KeyedGroup {
            key,
            prefix,
            separator,
            parent,
            default_value: default_value.map(Node::to_value),
            trailing_separator,
        }))
    }

    /// A prefix or separator; an empty one is the word `None`, as in Ansible, and told.
    fn affix(&mut self, fields: &mut Fields<'_>, name: &'static str, otherwise: &str) -> Value {
        match fields.take_entry(name) {
            None => Value::String(otherwise.to_owned()),
            Some((key, node)) => {
                if node.is_null() {
                    self.out.push(
                        Diagnostic::warning(key.span, format!("'{name}' without a value is the word 'None'"))
                            .hint(format!("write {name}: ''")),
                    );
                }
                node.to_value()
            }
        }
    }
}
