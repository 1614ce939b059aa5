"""The subject hierarchy's folder that holds the prompts of a volume, so that they do not flood the list of data."""

from __future__ import annotations

_FOLDER = "SAMFineTune.folder"


def put_into_folder(node, volume_node) -> None:
    """Show a node in the folder of a volume's prompts, which is made when there is none."""
    hierarchy = node.GetScene().GetSubjectHierarchyNode()
    if hierarchy is None:
        return
    folder = _folder(hierarchy, volume_node)
    if not folder:
        folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), f"Prompts on {volume_node.GetName()}")
        hierarchy.SetItemAttribute(folder, _FOLDER, volume_node.GetID())
        hierarchy.SetItemExpanded(folder, False)
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, folder)
    else:
        hierarchy.CreateItem(folder, node)


def remove_folder(scene, volume_node) -> None:
    """Take away the folder, unless something is in it."""
    hierarchy = scene.GetSubjectHierarchyNode()
    folder = _folder(hierarchy, volume_node) if hierarchy is not None else 0
    if not folder:
        return
    for item in _children(hierarchy, folder):
        if hierarchy.GetItemDataNode(item) is None:  # its node was removed by somebody else
            hierarchy.RemoveItem(item, False, False)
    if not _children(hierarchy, folder):
        hierarchy.RemoveItem(folder, False, False)


def remove_with_item(scene, node) -> None:
    """Take a node out of the scene, and its place in the subject hierarchy."""
    hierarchy = scene.GetSubjectHierarchyNode()
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    folder = hierarchy.GetItemParent(item) if item else 0
    scene.RemoveNode(node)
    if item and item in _children(hierarchy, folder):  # the application has removed it by now
        hierarchy.RemoveItem(item, False, False)


def _folder(hierarchy, volume_node) -> int:
    """The item of the folder for this volume's prompts, 0 when there is none."""
    for item in _children(hierarchy, hierarchy.GetSceneItemID()):
        if hierarchy.GetItemAttribute(item, _FOLDER) == volume_node.GetID():
            return item
    return 0


def _children(hierarchy, item: int) -> list[int]:
    import vtk

    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(item, children, False)
    return [children.GetId(number) for number in range(children.GetNumberOfIds())]
