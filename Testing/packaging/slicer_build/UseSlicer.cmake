# The macros of a Slicer build that the extension uses; see SlicerConfig.cmake.
set(EXTENSION_NAME ${PROJECT_NAME})
include(CTest)

# Copies scripts and resources, sub-folders kept, into the build's module folder and installs that folder.
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(arg "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS OR NOT arg_NAME)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: NAME is missing, or unknown: ${arg_UNPARSED_ARGUMENTS}")
  endif()

  set(destination "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")
  set(installed "${destination}/") # the folder's content
  if(arg_WITH_SUBDIR)
    get_filename_component(subdir "${CMAKE_CURRENT_SOURCE_DIR}" NAME)
    set(destination "${destination}/${subdir}")
    set(installed "${destination}") # the folder itself
  endif()

  set(copies)
  foreach(file IN LISTS arg_SCRIPTS arg_RESOURCES)
    if(IS_ABSOLUTE "${file}" OR NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
      message(FATAL_ERROR "slicerMacroBuildScriptedModule: there is no ${file} in ${CMAKE_CURRENT_SOURCE_DIR}")
    endif()
    add_custom_command(
      OUTPUT "${destination}/${file}"
      DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${file}"
      COMMAND ${CMAKE_COMMAND} -E copy "${CMAKE_CURRENT_SOURCE_DIR}/${file}" "${destination}/${file}"
      )
    list(APPEND copies "${destination}/${file}")
  endforeach()
  add_custom_target(Copy${arg_NAME} ALL DEPENDS ${copies})
  install(DIRECTORY "${installed}" DESTINATION "${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}")
endfunction()

# Slicer runs the script's unit tests in the application, which is not here.
function(slicer_add_python_unittest)
  cmake_parse_arguments(arg "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${arg_SCRIPT}")
    message(FATAL_ERROR "slicer_add_python_unittest: there is no ${arg_SCRIPT} in ${CMAKE_CURRENT_SOURCE_DIR}")
  endif()
endfunction()
