//! Forgets what has been gone long enough.

use crate::core::{Core, now_s};
use crate::gateway::removal;
use crate::rows::{
    ConnectEndpoint, ConnectState, Instance, NatGateway, NatState, Peering, Reservation, Scope,
    Token,
};
use crate::wire::ApiError;
use std::collections::HashSet;
use std::time::Duration;

/// How long terminated instances and ended peerings stay visible, as in EC2.
const VISIBLE_S: i64 = 3_600;
/// How long a token is remembered at least.
const TOKEN_S: i64 = 86_400;
/// Rows of one transaction.
const GROUP: usize = 100;
/// How often it looks.
const PERIOD: Duration = Duration::from_secs(60);

/// Runs until the process ends.
pub async fn run(core: &Core) {
    loop {
        if let Err(error) = removal::finish(core).await {
            tracing::error!(%error, "cannot finish the removal of a node");
        }
        tokio::time::sleep(PERIOD).await;
        if let Err(error) = sweep(core, now_s()).await {
            tracing::error!(%error, "cannot forget what is gone");
        }
    }
}

/// Forgets what was gone long enough at a time.
///
/// # Errors
/// Only those of the store.
pub async fn sweep(core: &Core, now_s: i64) -> Result<(), ApiError> {
    let scopes: Vec<Scope> =
        core.peek(|view| view.shards().map(|(scope, _)| scope.clone()).collect());
    for scope in scopes {
        core.write(&scope, |tx| {
            let over =
                |row: &Instance| row.terminated_at_s.is_some_and(|at| at + VISIBLE_S < now_s);
            let view = tx.view;
            let all = || view.all::<Instance>(&scope);
            for row in all().filter(|row| over(row)).take(GROUP) {
                tx.delete::<Instance>(&row.id);
            }
            let ended = |row: &Peering| !row.is_alive() && row.changed_at_s + VISIBLE_S < now_s;
            let peerings = view.all::<Peering>(&scope).filter(|row| ended(row));
            for row in peerings.take(GROUP) {
                tx.delete::<Peering>(&row.id);
            }
            // Those that failed go by themselves.
            let over = |row: &NatGateway| match row.state {
                NatState::Failed => row.created_at_s + VISIBLE_S < now_s,
                NatState::Deleted => row.deleted_at_s.is_some_and(|at| at + VISIBLE_S < now_s),
                _ => false,
            };
            let gateways = view.all::<NatGateway>(&scope).filter(|row| over(row));
            for row in gateways.take(GROUP) {
                tx.delete::<NatGateway>(&row.id);
            }
            let over = |row: &ConnectEndpoint| {
                let gone = row.state == ConnectState::DeleteComplete;
                gone && row.deleted_at_s.is_some_and(|at| at + VISIBLE_S < now_s)
            };
            let endpoints = view.all::<ConnectEndpoint>(&scope);
            for row in endpoints.filter(|row| over(row)).take(GROUP) {
                tx.delete::<ConnectEndpoint>(&row.id);
            }
            Ok(())
        })
        .await?;
        core.write(&scope, |tx| {
            let view = tx.view;
            let instances = || view.all::<Instance>(&scope);
            let used: HashSet<_> = instances().map(|row| row.reservation).collect();
            let known: HashSet<_> = instances().map(|row| row.id).collect();
            let unused = |row: &&std::sync::Arc<Reservation>| !used.contains(&row.id);
            for row in view
                .all::<Reservation>(&scope)
                .filter(unused)
                .take(GROUP / 2)
            {
                tx.delete::<Reservation>(&row.id);
            }
            let old = |token: &&std::sync::Arc<Token>| {
                token.at_s + TOKEN_S < now_s && !token.instances.iter().any(|id| known.contains(id))
            };
            for token in view.all::<Token>(&scope).filter(old).take(GROUP / 2) {
                tx.delete::<Token>(&token.key);
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}
