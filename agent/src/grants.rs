use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rollcall_engine::{
    protocol::{Answer, Ask, Passed},
    run::Link as _,
    secrets::{
        Name, Secret,
        grants::{GrantError, Grants, Issued, SignRequest, Wish},
        ownership::{Maker, Rule},
        redact,
    },
};

use crate::link::Controller;

/// The controller, asked for secrets. What it answered is kept for the run: a secret does not change within one.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    controller: Weak<Controller>,
    wish: Wish,
    known: Arc<Mutex<HashMap<Name, Secret>>>,
}

impl Asking {
    pub(crate) fn new(controller: Weak<Controller>, wish: Wish) -> Self {
        Self { controller, wish, known: Arc::default() }
    }

    /// The same with another wish: what one was answered the other one knows.
    pub(crate) fn with(&self, wish: Wish) -> Self {
        Self { wish, ..self.clone() }
    }

    fn ask(&self, name: &Name, wish: Wish) -> Result<Secret, GrantError> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = known().get(name) {
            return Ok(value.clone());
        }
        self.told(name, Ask::Secret { name: name.to_string(), wish })
    }

    /// Asks for what a name has, and remembers it.
    fn told(&self, name: &Name, ask: Ask) -> Result<Secret, GrantError> {
        let controller = self.controller.upgrade().ok_or_else(|| GrantError::refused("the run is over"))?;
        let answer = controller.ask(ask);
        let value = match answer.map_err(|failure| GrantError::refused(failure.message))? {
            Answer::Secret(answer) => answer?.0,
            Answer::Refused(why) => return Err(GrantError::refused(why)),
            _ => return Err(GrantError::refused("an answer of the wrong kind")),
        };
        // What the authority says of itself is for everybody.
        if !Rule::of(name).is_some_and(|rule| rule.maker == Maker::Issuer) {
            redact::register(&value);
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), value.clone());
        Ok(value)
    }
}

impl Grants for Asking {
    fn secret(&self, name: &Name) -> Result<Secret, GrantError> {
        self.ask(name, self.wish)
    }

    fn mark(&self, name: &Name) -> Result<Secret, GrantError> {
        match self.wish {
            Wish::Look => Err(GrantError::NotYet(format!("'{name}' is written down when this is carried out"))),
            Wish::Make | Wish::Mark => self.ask(name, Wish::Mark),
        }
    }

    fn keep(&self, name: &Name, value: &Secret, in_place_of: Option<&Secret>) -> Result<Secret, GrantError> {
        if self.wish == Wish::Look {
            return Err(GrantError::NotYet(format!("'{name}' is kept when this is carried out")));
        }
        let passed = |secret: &Secret| Passed(secret.clone());
        let in_place_of = in_place_of.map(passed);
        self.told(name, Ask::Keep { name: name.to_string(), value: passed(value), in_place_of })
    }

    fn sign(&self, request: &SignRequest) -> Result<Issued, GrantError> {
        if self.wish == Wish::Look {
            return Err(GrantError::NotYet("a certificate is signed when this is carried out".into()));
        }
        let controller = self.controller.upgrade().ok_or_else(|| GrantError::refused("the run is over"))?;
        let answer = controller.ask(Ask::Sign(request.clone()));
        match answer.map_err(|failure| GrantError::refused(failure.message))? {
            Answer::Issued(answer) => answer,
            Answer::Refused(why) => Err(GrantError::refused(why)),
            _ => Err(GrantError::refused("an answer of the wrong kind")),
        }
    }
}
