//! A user who is not root: the lab by `sudo`, everything else as they are. Their account is made in a mount namespace of its own, so that this
//! machine keeps its users.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rollcall_tests::{Lab, Said, program, run};

const USER: &str = "newcomer";
const ID: u32 = 4242;

const LAB: &str = "name: sudo\nkeys: [{name: k}]\ninstances:\n  - {name: web, key: k, tags: {Role: web}}\n";
const SETTINGS: &str = "inventory: [aws_ec2.yaml]\ncluster: test\n";
const INVENTORY: &str = "plugin: amazon.aws.aws_ec2\nregions: [us-west-2]\nhostnames: [tag:Name]\n\
                         compose: {ansible_host: private_ip_address}\n";
const GROUP: &str = "ansible_user: admin\nansible_ssh_private_key_file: \"{{ lookup('env', 'ROLLCALL_LAB_KEY') }}\"\n";
const PLAYBOOK: &str = "- hosts: all\n  become: true\n  tasks:\n    - copy: {content: hello, dest: /etc/greeting}\n";

/// The user's account, home folder and session. What was made before is shared with root, who runs the tests.
struct User {
    dir: tempfile::TempDir,
    lab: Lab,
}

impl User {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let lab = Lab { name: format!("{}-sudo", Lab::shared().name) };
        let user = Self { dir, lab };
        for file in ["passwd", "group", "shadow"] {
            let text = std::fs::read_to_string(Path::new("/etc").join(file)).expect("the machine has it");
            let line = match file {
                "passwd" => format!("{USER}:x:{ID}:{ID}::/home/{USER}:/bin/bash\n"),
                "group" => format!("{USER}:x:{ID}:\n"),
                _ => format!("{USER}:*:20000:0:99999:7:::\n"),
            };
            user.write(file, &(text + &line));
        }
        user.write("sudoers", &format!("Defaults env_reset\nroot ALL=(ALL:ALL) ALL\n{USER} ALL=(ALL) NOPASSWD: ALL\n"));
        for (name, text) in
            [("lab.yaml", LAB), ("rollcall.yaml", SETTINGS), ("aws_ec2.yaml", INVENTORY), ("site.yaml", PLAYBOOK)]
        {
            user.write(name, text);
        }
        user.write("all.yaml", GROUP);
        user
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).expect("it can be written");
    }

    /// Runs a script as the user, in their project.
    fn types(&self, script: &str) -> Said {
        let programs = program("lab").parent().expect("it lies in a folder").to_path_buf();
        let root = std::env::var("HOME").expect("whoever runs the tests has one");
        let cache = std::env::var("XDG_CACHE_HOME").unwrap_or_else(|_| format!("{root}/.cache"));
        let session = format!(
            "set -euo pipefail
            cd '{dir}'
            chown 0:0 passwd group shadow sudoers; chmod 0644 passwd group; chmod 0640 shadow; chmod 0440 sudoers
            for file in passwd group shadow sudoers; do mount --bind $file /etc/$file; done
            mount -t tmpfs -o mode=0755 tmpfs /home
            mkdir -p /home/{USER}/.cache/rollcall-lab /home/{USER}/project/group_vars /home/{USER}/bin
            cp lab.yaml rollcall.yaml aws_ec2.yaml site.yaml /home/{USER}/project; cp all.yaml /home/{USER}/project/group_vars
            chown -R {ID}:{ID} /home/{USER}
            mount --bind '{cache}/rollcall-lab' /home/{USER}/.cache/rollcall-lab
            mount --bind '{programs}' /home/{USER}/bin
            cd /home/{USER}/project
            exec setpriv --reuid={ID} --regid={ID} --init-groups env --ignore-environment HOME=/home/{USER} USER={USER} \
                PATH=/home/{USER}/bin:/usr/local/bin:/usr/bin:/bin ROLLCALL_LAB={lab} bash -euo pipefail -c \"$1\"",
            dir = self.dir.path().display(),
            programs = programs.display(),
            lab = self.lab.name,
        );
        let words = ["--mount", "bash", "-c", &session, "bash", script];
        run(Command::new("unshare").args(words), Duration::from_mins(5))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.lab.command(["down"]).output();
    }
}

#[test]
fn a_user_who_is_not_root_needs_sudo_for_the_lab_alone() {
    let user = User::new();
    user.types("lab up lab.yaml --name \"$ROLLCALL_LAB\"").ends(1).says("needs root").says("run it again with sudo");
    let said = user.types(
        "as_root() { sudo --preserve-env=ROLLCALL_LAB \"$(command -v lab)\" \"$@\"; }
        as_root up lab.yaml --name \"$ROLLCALL_LAB\"
        lab status
        as_root shell -- id --user --name
        as_root shell -- controller run site.yaml
        as_root shell -- controller run site.yaml
        as_root exec web -- cat /etc/greeting; echo
        echo \"root's: $(find ~ -xdev -user root -not -path '*/rollcall-lab' -not -path '*/bin')\"
        as_root down
        lab status || echo gone",
    );
    let said = said.ok().says(USER).says("changed=1").says("changed=0").says("hello").says("gone");
    assert!(said.out.lines().any(|line| line == "root's: "), "{}", said.report());
}
