//! `docker_container`: one container of this host, as it should be.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{
    Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    docker::{self, Calls, Looked, MANAGED_LABEL, at, docker, look, texts, unknown},
    place::planned,
};
use crate::{
    args, choice,
    host::{Command, Write},
};

mod wanted;

use wanted::{View, Wanted};

choice!(
    /// What it should be.
    State { Started = "started" | "present", Stopped = "stopped", Absent = "absent" }
);
choice!(
    /// When the engine starts it again.
    Restart { No = "no", Always = "always", UnlessStopped = "unless-stopped", OnFailure = "on-failure" }
);

args! {
    /// Arguments of `docker_container`.
    pub struct Args {
        /// The container's name.
        name []: String, required;
        /// The image with its tag. One that this host does not have is fetched from its registry.
        image []: Option<String>;
        /// What it runs, as a line or a list of words; without it what the image says. Everyone on the host can read it.
        command []: Option<Value>;
        /// Environment variables, beside those of the image. This is the place for secrets: they are on no command line, and no
        /// difference shows them. Who may ask the engine sees them.
        env ["environment"]: Map<String, Value> = Map::new();
        /// Ports that are published: `8080:80`, `127.0.0.1:5353:53/udp`.
        ports ["published_ports"]: Vec<String>;
        /// Folders and volumes: `/srv/data:/data`, `/etc/app:/etc/app:ro`, `cache:/cache`.
        volumes []: Vec<String>;
        /// Networks, which must be there; `host` and `none` are two of their own. Without one it is `bridge`.
        networks []: Vec<String>;
        /// When the engine starts it again.
        restart ["restart_policy"]: Restart = Restart::UnlessStopped;
        /// The most memory that it may use: `256m`, `1g`.
        memory []: Option<String>;
        /// The most processors that it may use: `0.5`.
        cpus []: Option<String>;
        /// User and group in the container: `1000:1000`. Without it what the image says.
        user []: Option<String>;
        /// Labels, beside those of the image.
        labels []: Map<String, Value> = Map::new();
        /// Seconds from asking it to stop until it is killed.
        stop_timeout []: Duration = Duration::from_secs(10);
        /// What it should be.
        state []: State = State::Started;
        /// Take over a container of this name that was not made by this module.
        force []: bool = false;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "docker_container",
    aliases: &[],
    summary: "Runs a container of Docker; one that differs is made anew",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("container", "Its name."),
        ("id", "The container's id; empty where there is none."),
        ("status", "What the engine calls its state: `running`, `exited`; empty where there is none."),
    ]],
    example: "- name: the web service\n  docker_container:\n    name: web-service\n    image: web-service:v0.1\n    ports: [\"8080:8080\"]\n    memory: 64m\n",
    plan,
};

/// Between the start and the look whether it stays up.
const SETTLE: Duration = Duration::from_millis(700);

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    check_name(&args.name)?;
    planned(cx, || {
        let found = match look(inv, cx.host, "container", &args.name)? {
            Looked::Nothing => None,
            Looked::Unknown(why) => return Ok(unknown(&why)),
            Looked::Found(container) => Some(container),
        };
        if let Some(container) = &found
            && !args.force
            && !is_ours(container)
        {
            let message = format!("there is a container '{}' that was not made by docker_container", args.name);
            return Err(
                Failure::new(message).hint("give this one another name, or take that one over with force: true")
            );
        }
        if args.state == State::Absent {
            return Ok(absent(inv, &args, found));
        }
        present(inv, &args, found, cx)
    })
}

fn check_name(name: &str) -> Result<(), Failure> {
    let good = name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if good {
        return Ok(());
    }
    Err(Failure::new(format!("argument 'name': '{}' is no name for a container", name.escape_debug()))
        .hint("at least two letters, digits and _.-, the first a letter or digit"))
}

fn is_ours(container: &Value) -> bool {
    container["Config"]["Labels"].get(MANAGED_LABEL).is_some()
}

fn told(outcome: Outcome, name: &str, container: Option<&Value>) -> Outcome {
    let text = |pointer| container.map_or("", |container| at(container, pointer)).to_owned();
    outcome.with("container", name).with("id", text("/Id")).with("status", text("/State/Status"))
}

fn stop(inv: &Invocation, args: &Args) -> Command {
    docker(inv, ["stop", "--time", &args.stop_timeout.as_secs().to_string(), &args.name])
}

fn absent(inv: &Invocation, args: &Args, found: Option<Value>) -> Plan {
    let Some(container) = found else {
        return Plan::Unchanged(told(Outcome::unchanged(), &args.name, None));
    };
    let before = format!("{}\n", at(&container, "/State/Status"));
    Plan::Change(Box::new(Calls {
        diffs: vec![Diff { what: format!("container {}", args.name), before, after: String::new(), hidden: false }],
        // Asked first: a removal by force is a kill.
        list: vec![stop(inv, args), docker(inv, ["rm", "--force", &args.name])],
        outcome: told(Outcome::changed(), &args.name, None),
        finish: Box::new(|_, outcome| Ok(outcome)),
    }))
}

fn present(inv: &Invocation, args: &Args, found: Option<Value>, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let wanted = Wanted::new(args)?;
    // What the container has from its image is no difference.
    let base = match found.as_ref().map(|container| at(container, "/Image")).filter(|id| !id.is_empty()) {
        Some(id) => description(inv, id, cx)?,
        None => Value::Null,
    };
    let image = description(inv, &wanted.image, cx)?;
    let before = found.as_ref().map(|container| View::found(container, &base));
    let mut after = wanted.view(&image);
    if at(&image, "/Id").is_empty() {
        // It will be fetched: which one it is the registry knows.
        after.image.clone_from(&wanted.image);
    }
    let runs = found.as_ref().map(|container| at(container, "/State/Status") == "running");
    let should_run = args.state == State::Started;
    let same = before.as_ref() == Some(&after) && found.as_ref().is_some_and(is_ours);
    if same && runs == Some(should_run) {
        return Ok(Plan::Unchanged(told(Outcome::unchanged(), &args.name, found.as_ref())));
    }
    let mut list = Vec::new();
    if same {
        list.push(match (should_run, found.as_ref().map(|container| at(container, "/State/Status"))) {
            (true, Some("paused")) => docker(inv, ["unpause", &args.name]),
            (true, _) => docker(inv, ["start", &args.name]),
            (false, _) => stop(inv, args),
        });
    } else {
        list = make(inv, args, &wanted, found.is_some(), cx)?;
        if should_run {
            list.push(docker(inv, ["start", &args.name]));
        }
    }
    let state = |runs: bool| if runs { "state: running\n" } else { "state: stopped\n" };
    let was = before.as_ref().map_or_else(String::new, |view| format!("{view}{}", state(runs == Some(true))));
    let what = format!("container {}", args.name);
    let diff = if inv.secret {
        Diff { what, before: String::new(), after: String::new(), hidden: true }
    } else {
        Diff { what, before: was, after: format!("{after}{}", state(should_run)), hidden: false }
    };
    let (inv, name) = (inv.clone(), args.name.clone());
    let old = (!same).then(|| at(&base, "/Id").to_owned()).filter(|id| !id.is_empty());
    Ok(Plan::Change(Box::new(Calls {
        diffs: vec![diff],
        list,
        outcome: told(Outcome::changed(), &name, found.as_ref()),
        finish: Box::new(move |host, outcome| {
            if let Some(old) = old {
                tidy(&inv, host, &old);
            }
            settled(&inv, &name, should_run, host, outcome)
        }),
    })))
}

/// What the engine says of an image; null where there is none.
fn description(inv: &Invocation, image: &str, cx: &Cx<'_>) -> Result<Value, Failure> {
    match look(inv, cx.host, "image", image)? {
        Looked::Found(image) => Ok(image),
        Looked::Nothing | Looked::Unknown(_) => Ok(Value::Null),
    }
}

/// The calls that make the container. What stands in its place is removed only when the new one is made: a wrong argument or a
/// missing image leaves it as it is.
fn make(inv: &Invocation, args: &Args, wanted: &Wanted, exists: bool, cx: &Cx<'_>) -> Result<Vec<Command>, Failure> {
    let staged = format!("{}.rollcall-new", args.name);
    let mut list = Vec::new();
    // What a run left that was killed here.
    if let Looked::Found(_) = look(inv, cx.host, "container", &staged)? {
        list.push(docker(inv, ["rm", "--force", &staged]));
    }
    list.push(wanted.create(inv, &staged));
    for network in wanted.networks.iter().skip(1) {
        list.push(docker(inv, ["network", "connect", network, &staged]));
    }
    if exists {
        list.push(stop(inv, args));
        list.push(docker(inv, ["rm", "--force", &args.name]));
    }
    list.push(docker(inv, ["rename", &staged, &args.name]));
    Ok(list)
}

/// Removes the image that a container was made from before, where it has no name any more: it was built or loaded anew while this
/// container used it, and nothing else would ever remove it. What else uses it keeps it.
fn tidy(inv: &Invocation, host: &mut dyn Write, image: &str) {
    if let Ok(Looked::Found(found)) = look(inv, host.as_read(), "image", image)
        && texts(&found, "/RepoTags").is_empty()
    {
        let _ = docker::run(host, &docker(inv, ["image", "rm", image]));
    }
}

/// Whether it stays up: many a program ends at once, and says why in its log.
fn settled(
    inv: &Invocation,
    name: &str,
    should_run: bool,
    host: &mut dyn Write,
    outcome: Outcome,
) -> Result<Outcome, Failure> {
    if should_run && !cfg!(test) {
        std::thread::sleep(SETTLE);
    }
    let Looked::Found(container) = look(inv, host.as_read(), "container", name)? else {
        return Err(Failure::new(format!("the container {name} is gone again")));
    };
    let status = at(&container, "/State/Status");
    if !should_run || status == "running" {
        return Ok(told(outcome, name, Some(&container)));
    }
    let said = host.query(&docker(inv, ["logs", "--tail", "5", name])).map(|output| {
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let code = container["State"]["ExitCode"].as_i64().unwrap_or_default();
    let why = match said {
        Ok(said) if !said.is_empty() => format!(": {said}"),
        _ => String::new(),
    };
    let failure = Failure::new(format!("the container {name} does not stay up: it ended with code {code}{why}"));
    Err(failure.hint(format!("docker logs {name}")).with("status", status).with("container", name))
}

#[cfg(test)]
mod tests;
