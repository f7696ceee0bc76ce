//! The console of EC2 instances: where a fresh host's keys are learnt from, over the cloud's own channel.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use rollcall_engine::inventory::{InstanceRef, Inventory, aws_ec2};

use crate::ssh::ConsoleSource;

/// Asks the account in which the inventory found the instance.
#[derive(Debug)]
struct Ec2Console {
    instances: HashMap<String, InstanceRef>,
}

/// The console of every instance of the inventory.
pub(crate) fn source(inventory: &Inventory) -> Arc<dyn ConsoleSource> {
    let instances = inventory.hosts().filter_map(|h| h.instance.clone()).map(|i| (i.id.clone(), i)).collect();
    Arc::new(Ec2Console { instances })
}

impl ConsoleSource for Ec2Console {
    fn console<'a>(
        &'a self,
        instance_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<String>, String>> + Send + 'a>> {
        Box::pin(async move {
            let instance = self.instances.get(instance_id).ok_or("the inventory does not know this instance")?;
            aws_ec2::console_output(&instance.account, &instance.region, &instance.id).await.map_err(|e| {
                let mut text = crate::run::remote::chain(&e);
                if let Some(hint) = e.hint() {
                    text.push_str(&format!("; {hint}"));
                }
                text
            })
        })
    }
}
