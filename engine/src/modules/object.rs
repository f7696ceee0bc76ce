//! What a product knows by a name, such as policies and roles, brought to what it should be.

use std::time::Duration;

use super::{
    Cx, Failure, Outcome, Plan,
    api::{self, Access, Act, Client, Opened},
};
use crate::cluster::error::ApiError;

/// A policy or a role.
pub(super) trait Object: Clone + Send + 'static {
    /// Who is asked.
    type Api: Client + Send + 'static;
    /// Whose it is: `Consul`.
    const PRODUCT: &'static str;
    /// What messages call it: `policy`.
    const KIND: &'static str;
    /// What it is known by: its id, empty before it is made; or its name.
    fn id(&self) -> &str;
    /// The same with an id, where it has one beside its name.
    fn with_id(self, _: String) -> Self {
        self
    }
    /// Its description, which says whose it is.
    fn description(&self) -> &str;
    /// The product's own, which cannot be changed.
    fn is_builtin(&self) -> bool {
        false
    }
    /// Nothing that matters differs.
    fn same(&self, other: &Self) -> bool;
    /// What differences show.
    fn lines(&self) -> String;
    /// The one of a name.
    fn find(api: &Self::Api, name: &str) -> Result<Option<Self>, ApiError>;
    /// Makes it, or changes the one that has its id.
    fn write(&self, api: &Self::Api) -> Result<(), ApiError>;
    /// Removes it.
    fn delete(&self, api: &Self::Api) -> Result<(), ApiError>;
}

/// The plan that leads to `wanted`; `None`: it is not to be there.
pub(super) fn plan<T: Object>(
    name: String,
    wanted: Option<T>,
    (access, wait): (&Access<'_>, Duration),
    cx: &Cx<'_>,
) -> Result<Plan, Failure> {
    let client = match api::open::<T::Api>(access, cx)? {
        Opened::Client(client) => *client,
        Opened::Later(plan) => return Ok(plan),
    };
    let found = match api::first_look(wait, cx, || T::find(&client, &name)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    if let Some(found) = &found {
        if found.is_builtin() {
            return Err(Failure::new(format!("{} '{name}' is {}'s own and cannot be changed", T::KIND, T::PRODUCT)));
        }
        if wanted.is_none() && !api::is_ours(found.description()) {
            return Err(api::not_ours(&format!("{} '{name}'", T::KIND)));
        }
    }
    if same(found.as_ref(), wanted.as_ref()) {
        return Ok(Plan::Unchanged(told(Outcome::unchanged(), found.as_ref())));
    }
    let lines = |object: Option<&T>| object.map_or_else(String::new, T::lines);
    let diff = api::diff(
        format!("{} {} {name}", T::PRODUCT.to_lowercase(), T::KIND),
        &lines(found.as_ref()),
        &lines(wanted.as_ref()),
    );
    let planned = told(Outcome::changed(), found.as_ref());
    Ok(Act::plan(diff, planned, move |_| write(&client, &name, wanted.as_ref(), wait)))
}

fn write<T: Object>(client: &T::Api, name: &str, wanted: Option<&T>, wait: Duration) -> Result<Outcome, Failure> {
    let settled = api::settle(
        wait,
        || T::find(client, name),
        |found| same(found, wanted),
        |found| match (wanted, found) {
            (Some(wanted), found) => {
                let id = found.map(|found| found.id().to_owned()).unwrap_or_default();
                wanted.clone().with_id(id).write(client)
            }
            (None, Some(found)) => found.delete(client),
            (None, None) => Ok(()),
        },
    )?;
    Ok(told(api::outcome(settled.changed), settled.now.as_ref()))
}

fn told<T: Object>(outcome: Outcome, object: Option<&T>) -> Outcome {
    match object {
        Some(object) => outcome.with("id", object.id()),
        None => outcome,
    }
}

fn same<T: Object>(found: Option<&T>, wanted: Option<&T>) -> bool {
    match (found, wanted) {
        (Some(found), Some(wanted)) => found.same(wanted),
        (found, wanted) => found.is_none() && wanted.is_none(),
    }
}
