#!/bin/sh
# Turns a fresh debootstrap tree into the image that hosts start from. Runs inside it (chroot), as root.
set -eu

# The login user of Debian's own EC2 images.
useradd --create-home --shell /bin/bash --user-group admin
passwd --lock admin > /dev/null
printf 'admin ALL=(ALL) NOPASSWD:ALL\n' > /etc/sudoers.d/90-cloud-init-users
chmod 0440 /etc/sudoers.d/90-cloud-init-users

# Each host makes its own.
rm -f /etc/ssh/ssh_host_* /etc/machine-id /var/lib/dbus/machine-id /etc/hostname
: > /etc/machine-id
mkdir -p /var/lib/cloud/seed/rollcall /etc/apt/keyrings

# Nothing of the internet can be reached from a host: the lab writes its own source here.
rm -f /etc/apt/sources.list
printf 'Acquire::Retries "0";\nAcquire::Languages "none";\n' > /etc/apt/apt.conf.d/90rollcall-lab

systemctl enable systemd-networkd.service rollcall-cgroups.service rollcall-first-boot.service \
    rollcall-user-data.service > /dev/null 2>&1
# Of no use in a container, and each costs a part of the boot. networkd-wait-online stays: user-data waits for it.
systemctl mask systemd-pstore.service e2scrub_reap.service e2scrub_all.timer fstrim.timer \
    getty@tty1.service console-getty.service systemd-firstboot.service \
    apt-daily.timer apt-daily-upgrade.timer > /dev/null 2>&1

apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/bootstrap.log /var/log/dpkg.log /var/log/apt
