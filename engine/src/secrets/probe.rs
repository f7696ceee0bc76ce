//! The proof that a store can be used, the same for all of them.

use uuid::Uuid;

use super::{Created, Name, Secret, SecretStore, StoreError};

/// The first part of the names of probes.
pub const PART: &str = "probe";

/// Creates a value of its own, finds it, cannot create it again, deletes it, and finds it no more.
pub(super) async fn probe(store: &dyn SecretStore) -> Result<(), StoreError> {
    let id = Uuid::new_v4();
    let impossible = |why: String| StoreError::Impossible { store: store.describe(), why, hint: None };
    let name = Name::new(&format!("{PART}/{id}")).map_err(|e| impossible(e.to_string()))?;
    let value = Secret::new(id.to_string());
    let used = async {
        if store.create(&name, &value).await? != Created::New {
            return Err(impossible(format!("it says that the new name '{name}' has a value")));
        }
        if store.get(&name).await?.as_ref() != Some(&value) {
            return Err(impossible("what was just written is not what is read".to_owned()));
        }
        if store.create(&name, &Secret::new("another")).await? != Created::Exists {
            return Err(impossible("it takes a second value as new, so two makers would not agree".to_owned()));
        }
        Ok(())
    };
    let used = used.await;
    // Also after a failure: the value may be there.
    let deleted = store.delete(&name).await;
    used.and(deleted)?;
    match store.get(&name).await? {
        None => Ok(()),
        Some(_) => Err(impossible("what was just deleted is still there".to_owned())),
    }
}
