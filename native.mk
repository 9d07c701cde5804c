# The C parts: hvd/libhv.so, the board's hot devices and the emulation shim. The top Makefile includes this.

PYTHON ?= python3
CC ?= gcc
# A newer compiler may warn about more: only our own checks make that an error (.ci/run sets WERROR=-Werror).
WERROR ?=
HV_CFLAGS ?= -std=gnu11 -O2 -g -Wall -Wextra $(WERROR)
HV_DIRECTORIES := hvd/board/native $(patsubst %/,%,$(sort $(dir $(wildcard hvd/backends/*/*.c))))
HV_SOURCES := $(foreach d,$(HV_DIRECTORIES),$(wildcard $(d)/*.c))
HV_HEADERS := $(foreach d,$(HV_DIRECTORIES),$(wildcard $(d)/*.h)) hvd/board/native/points.h

hvd/board/native/points.h: hvd/trace/points.py
	$(PYTHON) -m hvd.trace.points > $@.new
	mv -f $@.new $@

# Linked under another name and moved, so that a running runner keeps the library that it has mapped.
hvd/libhv.so: $(HV_SOURCES) $(HV_HEADERS) native.mk
	$(CC) $(HV_CFLAGS) -fPIC -shared -pthread $(addprefix -I,$(HV_DIRECTORIES)) -o $@.new $(HV_SOURCES) -ldl
	mv -f $@.new $@

.PHONY: native native-clean
native: hvd/libhv.so

native-clean:
	rm -f hvd/libhv.so hvd/board/native/points.h

# The guest program of the emulation backend's self-check.
hvd/backends/emulation/selfcheck.bin: hvd/backends/emulation/selfcheck.S native.mk
	mkdir -p build
	$(CC) -m32 -c -o build/selfcheck.o $<
	objcopy -O binary -j .text build/selfcheck.o $@

native: hvd/backends/emulation/selfcheck.bin
