# The C parts: hvd/libhv.so, the board's hot devices, the emulation shim and the runner's side of the cell; hvd/hvd-cell. The top Makefile
# includes this.

PYTHON ?= python3
CC ?= gcc
# A newer compiler may warn about more: only our own checks make that an error (.ci/run sets WERROR=-Werror).
WERROR ?=
HV_CFLAGS ?= -std=gnu11 -O2 -g -Wall -Wextra $(WERROR)
HV_DIRECTORIES := hvd/board/native $(patsubst %/,%,$(sort $(dir $(wildcard hvd/backends/*/*.c))))
HV_SOURCES := $(foreach d,$(HV_DIRECTORIES),$(wildcard $(d)/*.c)) $(wildcard hvd/cell/host.c hvd/cell/check.c hvd/cell/decode.c hvd/hvpvcc/patch.c)
HV_HEADERS := $(foreach d,$(HV_DIRECTORIES),$(wildcard $(d)/*.h)) hvd/board/native/points.h $(wildcard hvd/cell/*.h) guests/include/hv/paravirt.h

hvd/board/native/points.h: hvd/trace/points.py
	$(PYTHON) -m hvd.trace.points > $@.new
	mv -f $@.new $@

# Linked under another name and moved, so that a running runner keeps the library that it has mapped.
hvd/libhv.so: $(HV_SOURCES) $(HV_HEADERS) native.mk
	$(CC) $(HV_CFLAGS) -fPIC -shared -pthread $(addprefix -I,$(HV_DIRECTORIES) hvd/cell) -o $@.new $(HV_SOURCES) -ldl
	mv -f $@.new $@

# The cell (hvd/cell/cell.h): one static executable, which holds the board's devices a second time. Only for x86-64; elsewhere there is none,
# and the backends that need it say so.
HV_CELL_FLAGS ?= -std=gnu11 -O2 -flto=auto -g -Wall -Wextra $(WERROR)
HV_CELL_NEEDS := -fPIE -static-pie -mgeneral-regs-only -mfsgsbase -fno-stack-protector -fcf-protection=none -fno-strict-aliasing
HV_CELL_SOURCES := $(filter-out hvd/cell/host.c hvd/cell/check.c,$(wildcard hvd/cell/*.c hvd/cell/*.S)) $(filter-out %/pages.c,$(wildcard hvd/board/native/*.c))
hvd/hvd-cell: $(HV_CELL_SOURCES) $(HV_HEADERS) native.mk
	$(CC) $(HV_CELL_FLAGS) $(HV_CELL_NEEDS) -Ihvd/board/native -Ihvd/cell -Iguests/include -o $@.new $(HV_CELL_SOURCES)
	mv -f $@.new $@

HV_MACHINE := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))
HV_CELL := $(if $(filter x86_64,$(HV_MACHINE)),$(if $(wildcard hvd/cell/main.c),hvd/hvd-cell))

# hvpvcc's assembler filter: gcc looks for `as` in its directory first.
hvd/hvpvcc/bin/as: $(wildcard hvd/hvpvcc/filter/*.c hvd/hvpvcc/filter/*.h) guests/include/hv/sites.h native.mk
	@mkdir -p $(@D)
	$(CC) $(HV_CFLAGS) -D_GNU_SOURCE -o $@.new $(filter %.c,$^)
	mv -f $@.new $@

.PHONY: native native-clean
native: hvd/libhv.so $(HV_CELL) hvd/hvpvcc/bin/as

native-clean:
	rm -f hvd/libhv.so hvd/hvd-cell hvd/hvpvcc/bin/as hvd/board/native/points.h

# The guest program of the emulation backend's self-check.
hvd/backends/emulation/selfcheck.bin: hvd/backends/emulation/selfcheck.S native.mk
	mkdir -p build
	$(CC) -m32 -c -o build/selfcheck.o $<
	objcopy -O binary -j .text build/selfcheck.o $@

native: hvd/backends/emulation/selfcheck.bin
