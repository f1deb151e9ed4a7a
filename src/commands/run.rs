//! `taphouse run`: live traffic.

use super::{load_config, open_store, start_logging};
use crate::cli::{RunArgs, ServerArgs};
use crate::config::{Config, InterfaceConfig, TapConfig};
use crate::failure::{Code, Failure};
use crate::notify::Notify;
use crate::server::{Keeper, LONG_WORK, Listeners, Setup, serve, tell};
use crate::taps::{LiveTap, open_interfaces, open_remote};
use anyhow::{Context, anyhow};
use capture::privileges::{self, Opener, User};
use std::collections::HashSet;
use std::path::Path;
use std::sync::mpsc::channel;
use storage::OnError;
use wire::TapId;

pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    let mut config = load_config(&args.server)?;
    if let Some(filter) = &args.filter {
        config.capture.filter = Some(filter.clone());
    }
    let log = start_logging(&config.log)?;
    let chosen = choose_taps(args, &config)?;
    crate::taps::filter([&config.capture.filter])?;
    let user = config.security.user.as_deref().map(User::lookup).transpose()?;

    // Everything that takes privileges, before the first thread that must not have them.
    privileges::raise_memlock()?;
    let opener = Opener::spawn(config.security.reopen)?;
    let (failed, failures) = channel();
    let mut taps: Vec<Option<LiveTap>> = Vec::new();
    for (id, tap) in chosen.iter().enumerate() {
        let local = tap.ssh.is_none();
        let open = || open_interfaces(tap, TapId(id as u16), &config, &opener, &failed);
        taps.push(local.then(open).transpose()?);
    }
    if let Some(user) = &user {
        give_folder(&config.data_dir, user)?;
    }
    let dropped = opener.drop_to(user.as_ref())?;
    tracing::info!("{dropped}");

    for (id, (tap, opened)) in chosen.iter().zip(&mut taps).enumerate() {
        if let Some(ssh) = &tap.ssh {
            *opened = Some(open_remote(tap, ssh, TapId(id as u16), &config)?);
        }
    }
    let taps: Vec<LiveTap> = taps.into_iter().flatten().collect();
    let listeners = Listeners::bind(&config)?;
    let names: Vec<String> = taps.iter().map(|t| t.name.clone()).collect();
    tell(Notify::from_env().as_ref(), |notify| notify.extend_timeout(LONG_WORK));
    let store = open_store(&config, &names, OnError::Count)?;
    let keeper = Some(Keeper { opener, failures });
    serve(Setup { reload: reloader(&args.server), config, log, taps, store, listeners, generated: false, keeper })
}

/// Makes the data folder of the user who is to write it, if it is not there yet.
fn give_folder(folder: &Path, user: &User) -> Result<(), Failure> {
    if folder.exists() {
        return Ok(());
    }
    let failed = || format!("cannot make {} for user {}", super::show(folder), user.name());
    std::fs::create_dir_all(folder).with_context(failed)?;
    std::os::unix::fs::chown(folder, Some(user.uid()), Some(user.gid())).with_context(failed)?;
    Ok(())
}

/// Reads file and overrides again.
pub(super) fn reloader(args: &ServerArgs) -> Box<dyn Fn() -> Result<Config, Failure> + Send> {
    let args = args.clone();
    Box::new(move || load_config(&args))
}

/// `-i`, else the config's taps, else the interface of the default route.
fn choose_taps(args: &RunArgs, config: &Config) -> Result<Vec<TapConfig>, Failure> {
    let own = |interface: &String| TapConfig {
        name: interface.clone(),
        interfaces: vec![InterfaceConfig::from(interface.as_str())],
        ..TapConfig::default()
    };
    let mut seen = HashSet::new();
    if let Some(twice) = args.interfaces.iter().find(|i| !seen.insert(*i)) {
        return Err(Failure::new(Code::Usage, anyhow!("-i {twice} is given twice; each interface is captured once")));
    }
    if !args.interfaces.is_empty() {
        return Ok(args.interfaces.iter().map(own).collect());
    }
    if !config.taps.is_empty() {
        return Ok(config.taps.clone());
    }
    let interface = tuning::default_route_interface()?;
    tracing::info!("no interface given: watching {interface}, which holds the default route");
    Ok(vec![own(&interface)])
}
