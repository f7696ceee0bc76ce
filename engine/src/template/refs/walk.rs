//! The way through a text that is understood: each name where it is used, with what guards it.

use std::{collections::HashSet, ops::Range};

use minijinja::machinery::{
    Span,
    ast::{self, CallArg, Expr, Stmt},
};

use super::{Analysis, Callee, Chain, Step};

/// Knows what a text itself defines, and whether what it comes to is evaluated in any case.
#[derive(Default)]
pub(super) struct Walker {
    pub(super) found: Analysis,
    locals: Vec<HashSet<String>>,
    conditions: usize,
}

fn range(span: Span) -> Range<usize> {
    span.start_offset as usize..span.end_offset as usize
}

fn root_start(expr: &Expr<'_>) -> usize {
    match expr {
        Expr::GetAttr(attr) => root_start(&attr.expr),
        Expr::GetItem(item) => root_start(&item.expr),
        other => range(other.span()).start,
    }
}

/// The chain that an expression is, if it is one.
fn chain_of(expr: &Expr<'_>) -> Option<(String, Vec<Step>)> {
    match expr {
        Expr::Var(var) => Some((var.id.to_owned(), Vec::new())),
        Expr::GetAttr(attr) => {
            let (root, mut steps) = chain_of(&attr.expr)?;
            steps.push(Step::Name(attr.name.to_owned()));
            Some((root, steps))
        }
        Expr::GetItem(item) => {
            let (root, mut steps) = chain_of(&item.expr)?;
            let constant = match &item.subscript_expr {
                Expr::Const(value) => value.value.as_str().map(str::to_owned),
                _ => None,
            };
            steps.push(match constant {
                Some(name) => Step::Name(name),
                None => Step::Dynamic(range(item.subscript_expr.span())),
            });
            Some((root, steps))
        }
        _ => None,
    }
}

/// `[a, b] | select('defined')`: the way to take of several names those that are there.
fn sieves(filter: &ast::Filter<'_>) -> bool {
    let wanted = match filter.name {
        "select" => "defined",
        "reject" => "undefined",
        _ => return false,
    };
    matches!(&filter.args[..], [CallArg::Pos(Expr::Const(test))] if test.value.as_str() == Some(wanted))
}

impl Walker {
    fn is_local(&self, name: &str) -> bool {
        name == "loop" || self.locals.iter().any(|scope| scope.contains(name))
    }

    fn assign(&mut self, target: &Expr<'_>) {
        match target {
            Expr::Var(var) => {
                if self.locals.is_empty() {
                    self.locals.push(HashSet::new());
                }
                if let Some(scope) = self.locals.last_mut() {
                    scope.insert(var.id.to_owned());
                }
            }
            Expr::List(list) => list.items.iter().for_each(|item| self.assign(item)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.assign(item)),
            other => self.expr(other),
        }
    }

    fn scoped(&mut self, work: impl FnOnce(&mut Self)) {
        self.locals.push(HashSet::new());
        work(self);
        self.locals.pop();
    }

    fn conditional(&mut self, work: impl FnOnce(&mut Self)) {
        self.conditions += 1;
        work(self);
        self.conditions -= 1;
    }

    fn call(&mut self, callee: Callee, name: &str, span: Span) {
        self.found.calls.push((callee, name.to_owned(), range(span)));
    }

    fn args(&mut self, args: &[CallArg<'_>]) {
        for arg in args {
            match arg {
                CallArg::Pos(e) | CallArg::Kwarg(_, e) | CallArg::PosSplat(e) | CallArg::KwargSplat(e) => self.expr(e),
            }
        }
    }

    /// The text in a constant; the parser folds lists of constants into one.
    fn words(&mut self, value: &minijinja::Value) {
        if let Some(text) = value.as_str() {
            self.found.words.insert(text.to_owned());
        } else if value.kind() == minijinja::value::ValueKind::Seq {
            value.try_iter().into_iter().flatten().for_each(|item| self.words(&item));
        }
    }

    /// Records a chain; false if the expression is none.
    fn chain(&mut self, expr: &Expr<'_>, guarded: bool) -> bool {
        let Some((root, steps)) = chain_of(expr) else { return false };
        self.subscripts(expr);
        self.found.chains.push(Chain {
            local: self.is_local(&root),
            // The span of an attribute access covers its last step only.
            range: root_start(expr)..range(expr.span()).end,
            conditional: self.conditions > 0,
            root,
            steps,
            guarded,
        });
        true
    }

    fn subscripts(&mut self, expr: &Expr<'_>) {
        match expr {
            Expr::GetAttr(attr) => self.subscripts(&attr.expr),
            Expr::GetItem(item) => {
                self.subscripts(&item.expr);
                self.expr(&item.subscript_expr);
            }
            _ => {}
        }
    }

    /// An expression whose value may be missing.
    fn guarded(&mut self, expr: &Expr<'_>) {
        if !self.chain(expr, true) {
            self.expr(expr);
        }
    }

    pub(super) fn expr(&mut self, expr: &Expr<'_>) {
        if self.chain(expr, false) {
            return;
        }
        match expr {
            Expr::Var(_) => {}
            Expr::Const(constant) => self.words(&constant.value),
            Expr::GetAttr(attr) => {
                self.found.words.insert(attr.name.to_owned());
                self.expr(&attr.expr);
            }
            Expr::GetItem(item) => {
                self.expr(&item.expr);
                self.expr(&item.subscript_expr);
            }
            Expr::Slice(slice) => {
                self.expr(&slice.expr);
                [&slice.start, &slice.stop, &slice.step].into_iter().flatten().for_each(|e| self.expr(e));
            }
            Expr::UnaryOp(op) => self.expr(&op.expr),
            Expr::BinOp(op) => {
                self.expr(&op.left);
                match op.op {
                    ast::BinOpKind::ScAnd | ast::BinOpKind::ScOr => self.conditional(|w| w.expr(&op.right)),
                    _ => self.expr(&op.right),
                }
            }
            Expr::Compare(compare) => {
                self.expr(&compare.expr);
                compare.ops.iter().for_each(|op| self.expr(&op.expr));
            }
            Expr::IfExpr(choice) => {
                self.expr(&choice.test_expr);
                self.conditional(|w| {
                    w.expr(&choice.true_expr);
                    choice.false_expr.iter().for_each(|e| w.expr(e));
                });
            }
            Expr::Filter(filter) => self.filter(filter, expr.span()),
            Expr::Test(test) => {
                self.call(Callee::Test, test.name, expr.span());
                match test.name {
                    "defined" | "undefined" => self.guarded(&test.expr),
                    _ => self.expr(&test.expr),
                }
                self.args(&test.args);
            }
            Expr::Call(call) => self.called(call, expr.span()),
            Expr::List(list) => self.literal(list.items.iter(), expr.span()),
            Expr::Tuple(tuple) => self.literal(tuple.items.iter(), expr.span()),
            Expr::Map(map) => self.literal(map.keys.iter().chain(&map.values), expr.span()),
        }
    }

    fn literal<'e, 's: 'e>(&mut self, items: impl Iterator<Item = &'e Expr<'s>> + Clone, span: Span) {
        if items.clone().any(|item| !matches!(item, Expr::Const(_))) {
            self.found.literals.push(range(span));
        }
        items.for_each(|item| self.expr(item));
    }

    fn filter(&mut self, filter: &ast::Filter<'_>, span: Span) {
        self.call(Callee::Filter, filter.name, span);
        let soft = matches!(filter.name, "default" | "d") && !filter.args.is_empty();
        if let Some(value) = &filter.expr {
            match value {
                value if soft => self.guarded(value),
                Expr::List(list) if sieves(filter) => list.items.iter().for_each(|item| self.guarded(item)),
                value => self.expr(value),
            }
        }
        if soft {
            self.conditional(|w| w.args(&filter.args));
        } else {
            self.args(&filter.args);
        }
        if let ("map" | "select" | "reject" | "selectattr" | "rejectattr", args) = (filter.name, &filter.args) {
            self.named_callee(filter.name, args, span);
        }
    }

    /// `map('upper')`, `selectattr('x', 'match', …)`: the name of a filter or a test in a literal.
    fn named_callee(&mut self, filter: &str, args: &[CallArg<'_>], span: Span) {
        let position = usize::from(filter.ends_with("attr"));
        let name = match args.get(position) {
            Some(CallArg::Pos(Expr::Const(value))) => value.value.as_str().map(str::to_owned),
            _ => None,
        };
        if let Some(name) = name {
            let callee = if filter == "map" { Callee::Filter } else { Callee::Test };
            self.call(callee, &name, span);
        }
    }

    fn called(&mut self, call: &ast::Call<'_>, span: Span) {
        match &call.expr {
            Expr::Var(var) if matches!(var.id, "super" | "caller") || self.is_local(var.id) => {}
            Expr::Var(var) => self.call(Callee::Function, var.id, span),
            // A method: its object is what is asked for.
            Expr::GetAttr(attr) => self.expr(&attr.expr),
            other => self.expr(other),
        }
        self.args(&call.args);
    }

    fn body(&mut self, body: &[Stmt<'_>]) {
        for stmt in body {
            self.stmt(stmt);
        }
    }

    fn template_name(&mut self, expr: &Expr<'_>) {
        match expr {
            Expr::Const(value) => self.found.templates.extend(value.value.as_str().map(str::to_owned)),
            Expr::List(list) => list.items.iter().for_each(|e| self.template_name(e)),
            other => self.expr(other),
        }
    }

    fn macro_body(&mut self, decl: &ast::Macro<'_>) {
        decl.defaults.iter().for_each(|e| self.expr(e));
        self.scoped(|w| {
            decl.args.iter().for_each(|a| w.assign(a));
            for name in ["caller", "varargs", "kwargs"] {
                w.assign_name(name);
            }
            w.conditional(|w| w.body(&decl.body));
        });
    }

    fn assign_name(&mut self, name: &str) {
        if self.locals.is_empty() {
            self.locals.push(HashSet::new());
        }
        if let Some(scope) = self.locals.last_mut() {
            scope.insert(name.to_owned());
        }
    }

    pub(super) fn stmt(&mut self, stmt: &Stmt<'_>) {
        match stmt {
            Stmt::Template(t) => self.body(&t.children),
            Stmt::EmitExpr(e) => self.expr(&e.expr),
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
            Stmt::ForLoop(l) => self.for_loop(l),
            Stmt::IfCond(c) => {
                self.expr(&c.expr);
                self.conditional(|w| {
                    w.body(&c.true_body);
                    w.body(&c.false_body);
                });
            }
            Stmt::WithBlock(b) => self.scoped(|w| {
                for (target, value) in &b.assignments {
                    w.expr(value);
                    w.assign(target);
                }
                w.body(&b.body);
            }),
            Stmt::Set(s) => {
                self.expr(&s.expr);
                self.assign(&s.target);
            }
            Stmt::SetBlock(s) => {
                self.body(&s.body);
                s.filter.iter().for_each(|e| self.expr(e));
                self.assign(&s.target);
            }
            Stmt::AutoEscape(a) => self.body(&a.body),
            Stmt::FilterBlock(f) => {
                self.expr(&f.filter);
                self.body(&f.body);
            }
            Stmt::Block(b) => self.scoped(|w| w.body(&b.body)),
            Stmt::Import(i) => {
                self.template_name(&i.expr);
                self.assign(&i.name);
            }
            Stmt::FromImport(i) => {
                self.template_name(&i.expr);
                for (name, alias) in &i.names {
                    self.assign(alias.as_ref().unwrap_or(name));
                }
            }
            Stmt::Extends(e) => self.template_name(&e.name),
            Stmt::Include(i) => self.template_name(&i.name),
            Stmt::Macro(m) => {
                self.assign_name(m.name);
                self.macro_body(m);
            }
            Stmt::CallBlock(c) => {
                self.called(&c.call, c.call.span());
                self.macro_body(&c.macro_decl);
            }
            Stmt::Do(d) => self.called(&d.call, d.call.span()),
        }
    }

    fn for_loop(&mut self, l: &ast::ForLoop<'_>) {
        self.expr(&l.iter);
        self.scoped(|w| {
            w.assign(&l.target);
            w.conditional(|w| {
                l.filter_expr.iter().for_each(|e| w.expr(e));
                w.body(&l.body);
            });
        });
        self.conditional(|w| w.body(&l.else_body));
    }
}
