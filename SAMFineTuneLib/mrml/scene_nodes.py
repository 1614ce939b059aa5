"""Nodes of a scene: making, listing and removing them, and to which volume and segmentation they belong."""

from __future__ import annotations

VOLUME_ROLE = "SAMFineTune.volume"
SEGMENTATION_ROLE = "SAMFineTune.segmentation"


def new_node(scene, class_name: str):
    """A node that is not in the scene yet, so that its attributes are complete when observers hear of it."""
    node = scene.CreateNodeByClass(class_name)
    if node.GetReferenceCount() > 1:
        node.UnRegister(None)
    return node


def nodes_of(scene, class_name: str) -> list:
    """All nodes of a class, or one derived from it, in the scene's order."""
    found = scene.GetNodesByClass(class_name)
    found.UnRegister(scene)  # the caller owns it
    return [found.GetItemAsObject(number) for number in range(found.GetNumberOfItems())]


def companions_of(node) -> list:
    """The display and storage nodes of a node."""
    found = [node.GetNthDisplayNode(number) for number in range(node.GetNumberOfDisplayNodes())]
    found += [node.GetNthStorageNode(number) for number in range(node.GetNumberOfStorageNodes())]
    return [companion for companion in found if companion is not None and companion.GetScene() is not None]


def remove_those_left(scene, companions) -> None:
    """Remove display and storage nodes of a removed node. Slicer removes them itself; a scene without it does not."""
    for companion in companions:
        if companion.GetScene() is not None and scene.IsNodePresent(companion):
            scene.RemoveNode(companion)


def belongs(node, volume_node, segmentation_node) -> bool:
    """Whether a node refers to this volume and segmentation."""
    ids = (volume_node.GetID(), segmentation_node.GetID())
    return (node.GetNodeReferenceID(VOLUME_ROLE), node.GetNodeReferenceID(SEGMENTATION_ROLE)) == ids


def is_orphan(node) -> bool:
    """Whether the volume or segmentation that a node refers to is no longer there."""
    return node.GetNodeReference(VOLUME_ROLE) is None or node.GetNodeReference(SEGMENTATION_ROLE) is None
