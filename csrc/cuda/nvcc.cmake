# Compiles the CUDA kernels and links them, with the CUDA runtime, into _C. CMake's own CUDA
# language is not used: it does not find its way in the folders of nvidia's wheels.
set_property(SOURCE bindings/cuda_build.cpp PROPERTY COMPILE_DEFINITIONS
  FASTATTN_NVCC_VERSION="${FASTATTN_NVCC_VERSION}"
  "FASTATTN_CUDA_ARCHITECTURES=\"$<JOIN:${FASTATTN_CUDA_ARCHITECTURES}, >\""
  "FASTATTN_CUDA_SKIPPED=\"${FASTATTN_CUDA_SKIPPED}\""
)
if(NOT FASTATTN_NVCC)
  return()
endif()

# A toolkit of the system has lib64, the wheels have lib, Debian's has neither.
find_library(FASTATTN_CUDART cudart_static REQUIRED NO_DEFAULT_PATH
  PATHS ${FASTATTN_CUDA_TOOLKIT}/lib64 ${FASTATTN_CUDA_TOOLKIT}/lib
        /usr/lib/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu)
find_path(FASTATTN_CUDA_INCLUDE cuda_runtime_api.h REQUIRED NO_DEFAULT_PATH
  PATHS ${FASTATTN_CUDA_TOOLKIT}/include /usr/include)

# Code for each architecture and no PTX: what was not compiled is refused with a word, where a
# driver would spend minutes on compiling it.
set(nvcc_architectures "")
foreach(architecture IN LISTS FASTATTN_CUDA_ARCHITECTURES)
  list(APPEND nvcc_architectures
       -gencode arch=compute_${architecture},code=sm_${architecture})
endforeach()

set(nvcc_flags -std=c++17 -O3 -ccbin ${CMAKE_CXX_COMPILER} -I${CMAKE_CURRENT_SOURCE_DIR}
    -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra)
if(FASTATTN_NVCC_VERSION VERSION_GREATER_EQUAL 13)
  # A fifth of the default's size (of layer_norm.o for two architectures, nvcc 13.0, 2026-11-24).
  # Every driver that runs what nvcc 13 compiles can read it.
  list(APPEND nvcc_flags --compress-mode=size)
endif()
if(FASTATTN_WERROR)
  # A kernel that spills registers to memory is a mistake like any other.
  list(APPEND nvcc_flags -Werror all-warnings -Xptxas=--warn-on-spills,--warning-as-error)
endif()

# Architectures side by side, where there are more cores than files.
list(LENGTH cuda_kernels num_kernels)
math(EXPR nvcc_threads "(${FASTATTN_JOBS} + ${num_kernels} - 1) / ${num_kernels}")

set(cuda_objects "")
foreach(kernel IN LISTS cuda_kernels)
  set(source ${CMAKE_CURRENT_SOURCE_DIR}/${kernel})
  set(object ${CMAKE_CURRENT_BINARY_DIR}/${kernel}.o)
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${FASTATTN_NVCC} ${nvcc_flags} ${nvcc_architectures} --threads ${nvcc_threads}
            -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS ${source}
    DEPFILE ${object}.d
    COMMENT "Compiling ${kernel}"
    VERBATIM)
  list(APPEND cuda_objects ${object})
endforeach()
file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cuda ${CMAKE_CURRENT_BINARY_DIR}/hopper)

# Code that runs on compute capability 9.0 and on nothing later, beside that for sm_90.
if(90 IN_LIST FASTATTN_CUDA_ARCHITECTURES)
  foreach(kernel IN LISTS hopper_kernels)
    set(source ${CMAKE_CURRENT_SOURCE_DIR}/${kernel})
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${kernel}.o)
    set(command ${FASTATTN_NVCC} ${nvcc_flags} -gencode arch=compute_90a,code=sm_90a
        -MD -MF ${object}.d -c ${source} -o ${object})
    set(script ${CMAKE_CURRENT_SOURCE_DIR}/hopper/compile.cmake)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} "-DCOMMAND=${command}" -P ${script}
      DEPENDS ${source} ${script}
      DEPFILE ${object}.d
      COMMENT "Compiling ${kernel}"
      VERBATIM)
    list(APPEND cuda_objects ${object})
  endforeach()
  target_compile_definitions(_C PRIVATE FASTATTN_HOPPER)
endif()

find_package(Threads REQUIRED)
set_property(SOURCE bindings/cuda_runtime.cpp
             PROPERTY INCLUDE_DIRECTORIES ${FASTATTN_CUDA_INCLUDE})
target_sources(_C PRIVATE ${cuda_bindings} bindings/cuda_runtime.cpp ${cuda_objects})
target_compile_definitions(_C PRIVATE FASTATTN_CUDA)
# The runtime is linked in, and hidden: torch brings one of its own.
target_link_libraries(_C PRIVATE ${FASTATTN_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt)
target_link_options(_C PRIVATE -Wl,--exclude-libs,ALL)
