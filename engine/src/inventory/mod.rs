//! Hosts, groups and their variables: from files and clouds to what a play can address.
