# A stand-in for a Slicer build, so that the extension can be configured, built, installed and packaged without one.
#
# It offers what the extension's CMake files use, written anew from Slicer's documentation and behaviour, and nothing
# else: no compiler checks, no launcher, no upload. What holds here is a necessary condition, not a proof; a release is
# packaged against Slicer itself (docs/developer.md).
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/Package.cmake")

set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "lib/Slicer-5.11/qt-scripted-modules")
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR "./${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")
