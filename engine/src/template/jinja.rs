//! Template files in Jinja's syntax (`*.j2`), strict, with Ansible's settings.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    EvalError, Loader, References, Rendered, TemplateSource, calls, env,
    explain::{self, FileText, Origin},
    limits,
    place::Place,
    refs,
    session::{Failed, Session},
    soften::{self, Softened},
    values,
};
use crate::{
    diag::{Diagnostic, Span},
    vars::Scope,
};

/// Templates that one template may draw in.
const MAX_TEMPLATES: usize = 200;

fn origin<'a>(source: &TemplateSource<'a>, files: Option<&'a HashMap<String, FileText>>) -> Origin<'a> {
    Origin { source: source.text, place: Place::File(source.file), files }
}

pub(super) fn check(source: &TemplateSource<'_>) -> Result<References, Diagnostic> {
    let origin = origin(source, None);
    let found = refs::template(source.text).map_err(|e| explain::syntax(&e, &origin))?;
    calls::check(&found, &origin)?;
    Ok(found.references())
}

pub(super) fn render(source: &TemplateSource<'_>, scope: &Scope, loader: Loader<'_>) -> Result<Rendered, EvalError> {
    Session::run(scope, Span::whole(source.file), |session| {
        let softened = soften::template(source.text);
        let analysis = refs::template(source.text);
        let uses_others = analysis.as_ref().is_ok_and(|a| !a.templates.is_empty())
            || ["include", "import", "extends"].iter().any(|word| source.text.contains(word));
        let text = if uses_others {
            with_others(session, source, &softened, loader)?
        } else {
            let result = limits::template(source.text)
                .and_then(|()| env::inline().template_from_named_str(source.name, softened.text()))
                .and_then(|template| template.render(values::scope(session)));
            finish(session, result, &origin(source, None), &softened)?
        };
        Ok(Rendered { text, secret: session.tainted() })
    })
}

fn finish(
    session: &Arc<Session>,
    result: Result<String, minijinja::Error>,
    origin: &Origin<'_>,
    softened: &Softened<'_>,
) -> Result<String, Failed> {
    session.place(origin);
    match result {
        _ if session.failed() => Err(Failed),
        Ok(text) => Ok(text),
        Err(error) => Err(explain::fail(session, &error, origin, softened)),
    }
}

/// Renders with the templates that this one names. Which ones is known only while rendering (`include name`), and the
/// engine's loader cannot borrow ours: missing names are noted, loaded, and the rendering is done again. Rendering has
/// no effects, so that is the same as having had them from the start.
fn with_others(
    session: &Arc<Session>,
    source: &TemplateSource<'_>,
    softened: &Softened<'_>,
    loader: Loader<'_>,
) -> Result<String, Failed> {
    let mut files: HashMap<String, FileText> = HashMap::new();
    let mut absent: Vec<String> = Vec::new();
    loop {
        let missing: Arc<Mutex<Vec<String>>> = Arc::default();
        let known: HashMap<String, String> =
            files.iter().map(|(name, f)| (name.clone(), soften::template(&f.text).text().to_owned())).collect();
        let mut environment = env::inline().clone();
        let noted = missing.clone();
        environment.set_loader(move |name| {
            let text = known.get(name).cloned();
            if text.is_none() {
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
            }
            Ok(text)
        });
        let result = limits::template(source.text)
            .and_then(|()| environment.template_from_named_str(source.name, softened.text()))
            .and_then(|template| template.render(values::scope(session)));
        let wanted = std::mem::take(&mut *missing.lock().unwrap_or_else(PoisonError::into_inner));
        let mut loaded = false;
        for name in wanted {
            if absent.contains(&name) || files.contains_key(&name) {
                continue;
            }
            match loader(&name) {
                Some((file, text)) => {
                    if let Err(error) = limits::template(&text) {
                        let message = error.detail().unwrap_or_default().to_owned();
                        return Err(session.fail(Diagnostic::error(Span::whole(file), message)));
                    }
                    files.insert(name, FileText { file, text: text.into() });
                    loaded = true;
                }
                None => absent.push(name),
            }
        }
        if files.len() > MAX_TEMPLATES {
            let message = format!("this template draws in more than {MAX_TEMPLATES} others");
            return Err(session.fail(Diagnostic::error(Span::whole(source.file), message)));
        }
        if !loaded || session.failed() {
            return finish(session, result, &origin(source, Some(&files)), softened);
        }
    }
}
