# The imported target `libtorch`: torch's headers and the two libraries that CPU operators need.
#
# Not find_package(Torch): that of a CUDA build of torch wants a CUDA toolkit on the machine, which
# neither the CPU operators nor their tests use.

if(NOT FASTRES_TORCH_ROOT)
  set(FASTRES_PYTHON python3 CACHE STRING "The Python whose torch is used")
  execute_process(
    COMMAND ${FASTRES_PYTHON} -c
            "from importlib.util import find_spec; print(*find_spec('torch').submodule_search_locations)"
    OUTPUT_VARIABLE torch_root OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_VARIABLE python_error RESULT_VARIABLE python_status)
  if(NOT python_status EQUAL 0)
    message(FATAL_ERROR "${FASTRES_PYTHON} has no torch (${python_error}): set FASTRES_PYTHON to one "
                        "that has, or FASTRES_TORCH_ROOT to libtorch's folder")
  endif()
  set(FASTRES_TORCH_ROOT ${torch_root} CACHE PATH "The folder of libtorch's include/ and lib/")
endif()

foreach(name torch_cpu c10)
  find_library(FASTRES_${name} ${name} PATHS ${FASTRES_TORCH_ROOT}/lib NO_DEFAULT_PATH REQUIRED)
endforeach()

add_library(libtorch INTERFACE IMPORTED GLOBAL)
target_include_directories(libtorch SYSTEM INTERFACE
  ${FASTRES_TORCH_ROOT}/include ${FASTRES_TORCH_ROOT}/include/torch/csrc/api/include)
target_link_libraries(libtorch INTERFACE ${FASTRES_torch_cpu} ${FASTRES_c10})
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  # libtorch_cpu finds its own dependencies, a CUDA build's among them, when it is loaded.
  target_link_options(libtorch INTERFACE LINKER:--allow-shlib-undefined)
endif()
