# Runs COMMAND, a list, and fails if it does or if ptxas says that it will run the products of a
# warpgroup one after the other, waiting for each: it says so (C7510 to C7520) without a warning.
execute_process(COMMAND ${COMMAND} RESULT_VARIABLE result OUTPUT_VARIABLE output
                ERROR_VARIABLE output)
if(NOT result EQUAL 0 OR output MATCHES "wgmma[^\n]* serialized|setmaxnreg[^\n]* ignored")
  message(FATAL_ERROR "${output}")
endif()
