//! `exportTo`: to which namespaces a resource is visible.

use crate::{
    diagnostic::{Code, Position},
    source::decode::{Object, Path, Reader},
    spec::value::{ExportTo, Namespace},
};

/// The field `exportTo` of an object, relative to the resource's namespace.
pub(crate) fn field(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>, own: &Namespace) -> ExportTo {
    let path = spec.path.field("exportTo");
    let mut items = Vec::new();
    for (index, node) in spec.list(r, "exportTo").iter().enumerate() {
        items.extend(r.string(node, &path.index(index)).map(|text| (text, node.at)));
    }
    read(r, items.into_iter(), &path, own)
}

pub(crate) fn read<'t>(
    r: &mut Reader<'_>,
    items: impl Iterator<Item = (&'t str, Position)>,
    path: &Path<'_>,
    own: &Namespace,
) -> ExportTo {
    let (mut all, mut nobody, mut namespaces) = (None, None, Vec::new());
    let mut count = 0;
    for (text, at) in items {
        count += 1;
        match text {
            "*" => all = Some(at),
            "~" => nobody = Some(at),
            "." => namespaces.push(own.clone()),
            _ => {
                let namespace = Namespace::parse(r.share(text));
                namespaces.extend(r.valid(at, path, namespace));
            }
        }
    }
    namespaces.sort();
    namespaces.dedup();
    for (at, what) in [(all, "`*`"), (nobody, "`~`")] {
        if let Some(at) = at
            && count > 1
        {
            let message = format!("{what} stands beside other namespaces");
            r.error(Code::CONFLICT, at, path, message, "write it alone, or leave it out");
        }
    }
    match (all, nobody) {
        (_, Some(_)) => ExportTo::Nobody,
        (Some(_), None) => ExportTo::All,
        (None, None) if namespaces.is_empty() => ExportTo::All,
        (None, None) => ExportTo::Namespaces(namespaces),
    }
}
