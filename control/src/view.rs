//! The materialised view: every row in memory, typed, by scope and kind.
//!
//! Reads are answered from here. It is fed by the store when it opens and by
//! each transaction as it is decided.

use crate::rows::*;
use crate::store::{Entry, Revision};
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

/// A row and the revision that wrote it.
#[derive(Debug)]
pub struct Held<T> {
    /// Revision of the last write.
    pub revision: Revision,
    /// The row.
    pub row: Arc<T>,
}

/// All rows of one kind in one scope.
pub type Table<T> = BTreeMap<<T as Record>::Id, Held<T>>;

/// A kind of row that the view has a table for.
pub trait Kept: Record {
    /// Its table.
    fn table(shard: &Shard) -> &Table<Self>
    where
        Self: Sized;
    /// Its table.
    fn table_mut(shard: &mut Shard) -> &mut Table<Self>
    where
        Self: Sized;
}

macro_rules! shard {
    ($($field:ident: $type:ty,)*) => {
        /// All rows of one scope.
        #[derive(Debug, Default)]
        pub struct Shard {
            $($field: Table<$type>,)*
        }

        $(impl Kept for $type {
            fn table(shard: &Shard) -> &Table<Self> {
                &shard.$field
            }
            fn table_mut(shard: &mut Shard) -> &mut Table<Self> {
                &mut shard.$field
            }
        })*

        impl View {
            /// Takes in an entry of the store.
            ///
            /// # Errors
            /// Where the entry is not a row that this program knows.
            pub fn load(&mut self, entry: &Entry) -> Result<(), String> {
                let (scope, kind, _) = parse_key(&entry.key)
                    .ok_or_else(|| format!("key {:?} has not four parts", entry.key))?;
                match kind {
                    $(<$type as Record>::KIND => {
                        let row: $type = serde_json::from_slice(&entry.value)
                            .map_err(|error| format!("row {:?}: {error}", entry.key))?;
                        self.put(&scope, Arc::new(row), entry.revision);
                        Ok(())
                    })*
                    kind => Err(format!("key {:?} is of unknown kind {kind}", entry.key)),
                }
            }
        }
    };
}

shard! {
    instances: Instance,
    reservations: Reservation,
    volumes: Volume,
    snapshots: Snapshot,
    own_images: OwnImage,
    interfaces: Interface,
    groups: Group,
    vpcs: Vpc,
    subnets: Subnet,
    subnet_reservations: SubnetReservation,
    addresses: Addresses,
    gateways: Gateway,
    egress_gateways: EgressGateway,
    nat_gateways: NatGateway,
    connect_endpoints: ConnectEndpoint,
    route_tables: RouteTable,
    acls: Acl,
    dhcp_options: DhcpOptions,
    elastic_addresses: Address,
    peerings: Peering,
    prefix_lists: PrefixList,
    key_pairs: KeyPair,
    launch_templates: LaunchTemplate,
    template_versions: TemplateVersion,
    placement_groups: PlacementGroup,
    tokens: Token,
    settings: Settings,
    nodes: Node,
    removed_nodes: RemovedNode,
    counters: Counter,
    accounts: Account,
    access_keys: AccessKey,
}

/// Every row.
#[derive(Debug, Default)]
pub struct View {
    shards: HashMap<Scope, Shard>,
    empty: Shard,
    /// The last transaction that it contains.
    pub revision: Revision,
}

impl View {
    /// A scope's rows.
    pub fn shard(&self, scope: &Scope) -> &Shard {
        self.shards.get(scope).unwrap_or(&self.empty)
    }

    /// All scopes with rows.
    pub fn shards(&self) -> impl Iterator<Item = (&Scope, &Shard)> {
        self.shards.iter()
    }

    /// A row.
    pub fn get<T: Kept>(&self, scope: &Scope, id: &T::Id) -> Option<&Arc<T>> {
        T::table(self.shard(scope)).get(id).map(|held| &held.row)
    }

    /// Rows of one kind, by id.
    pub fn all<'a, T: Kept>(
        &'a self,
        scope: &Scope,
    ) -> impl Iterator<Item = &'a Arc<T>> + use<'a, T> {
        T::table(self.shard(scope)).values().map(|held| &held.row)
    }

    /// Rows of one kind, by id, from behind one on.
    pub fn after<'a, T: Kept>(
        &'a self,
        scope: &Scope,
        id: Option<T::Id>,
    ) -> impl Iterator<Item = &'a Arc<T>> + use<'a, T> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = T::table(self.shard(scope)).range((from, Bound::Unbounded));
        rows.map(|(_, held)| &held.row)
    }

    /// A row whose scope is not known, and its scope.
    pub fn find<T: Kept>(&self, id: &T::Id) -> Option<(&Scope, &Arc<T>)> {
        self.shards
            .iter()
            .find_map(|(scope, shard)| Some((scope, &T::table(shard).get(id)?.row)))
    }

    /// The revision that wrote a row, 0 if it is not there.
    pub fn revision_of<T: Kept>(&self, scope: &Scope, id: &T::Id) -> Revision {
        T::table(self.shard(scope))
            .get(id)
            .map_or(0, |held| held.revision)
    }

    /// Puts a row.
    pub fn put<T: Kept>(&mut self, scope: &Scope, row: Arc<T>, revision: Revision) {
        self.revision = self.revision.max(revision);
        if !self.shards.contains_key(scope) {
            self.shards.insert(scope.clone(), Shard::default());
        }
        if let Some(shard) = self.shards.get_mut(scope) {
            T::table_mut(shard).insert(row.id(), Held { revision, row });
        }
    }

    /// Removes a row.
    pub fn remove<T: Kept>(&mut self, scope: &Scope, id: &T::Id, revision: Revision) {
        self.revision = self.revision.max(revision);
        if let Some(shard) = self.shards.get_mut(scope) {
            T::table_mut(shard).remove(id);
        }
    }
}
