# The test kernels of guests/ into build/guests/. The top Makefile includes this. Needs gcc for x86 and binutils, no libraries.

GUEST_CC ?= gcc
GUEST_OBJCOPY ?= objcopy
GUEST_AR ?= ar
GUEST_BUILD := build/guests
GUEST_CFLAGS := -std=gnu11 -Os -g0 -Wall -Wextra $(WERROR) -ffreestanding -nostdlib -fno-pic -fno-pie -fno-stack-protector \
	-fno-asynchronous-unwind-tables -fcf-protection=none -mno-red-zone -mgeneral-regs-only -Iguests/include
GUEST_LDFLAGS := -static -no-pie -nostdlib -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,max-page-size=4096
GUEST_HEADERS := guests/include/guest.h guests/include/pci.h guests/include/hv/hypercall.h guests/include/hv/paravirt.h guests/include/hv/pv.h

include guests/teach/teach.mk

MODES := $(addprefix guests/modes/,main.c segments.c sixteen.c privileges.c strings.c fpu.c paging.c)

GUEST_MULTIBOOT := hello hypercalls interrupts apic exceptions paging spin halt triple reset flood wild echo compute ticker ports nonsense screen exits virtio hole isolation garbage callers clock stops busy poke again
# The same sources for the paravirtual ABI (docs/paravirtualisation.md), by one flag.
GUEST_PV := abi calls hello hypercalls interrupts exceptions paging halt echo compute ticker exits isolation spin flood triple reset wild virtio ports nonsense screen hole garbage apic callers clock stops
# The same sources, unmodified, by hvpvcc (docs/hvpvcc.md).
GUEST_HVPV := hello hypercalls interrupts apic paging halt reset echo compute ticker ports hole isolation garbage exits virtio
GUEST_HVPV_CC := $(GUEST_CC) -Bhvd/hvpvcc/bin/
GUEST_FILES := $(GUEST_MULTIBOOT:%=$(GUEST_BUILD)/%.elf) $(GUEST_BUILD)/nano.elf $(GUEST_BUILD)/modes.elf $(GUEST_BUILD)/modes.pv.elf $(GUEST_BUILD)/pvh.elf $(GUEST_BUILD)/long.elf $(GUEST_BUILD)/alias.elf $(GUEST_BUILD)/flat.bin $(GUEST_BUILD)/hostile.bin $(GUEST_BUILD)/boot.img $(GUEST_PV:%=$(GUEST_BUILD)/%.pv.elf) \
	$(GUEST_HVPV:%=$(GUEST_BUILD)/%.hvpv.elf) $(GUEST_BUILD)/nano.pv.elf $(GUEST_BUILD)/limit.pv.elf $(GUEST_BUILD)/sites.pv.elf $(GUEST_BUILD)/registers.pv.elf $(GUEST_BUILD)/spaces.pv.elf $(GUEST_BUILD)/nano-native $(GUEST_BUILD)/libhvpv.a \
	$(GUEST_BUILD)/diskrate $(GUEST_BUILD)/avx $(GUEST_BUILD)/ops $(GUEST_BUILD)/sites $(GUEST_BUILD)/watched $(TEACH_GUEST)

GUEST_LIB := $(addprefix $(GUEST_BUILD)/lib/,start.o print.o check.o traps.o pic.o entry.o)
GUEST_LIB_PV := $(addprefix $(GUEST_BUILD)/lib-pv/,start.o print.o check.o traps.o pic.o entry.o pv.o)
GUEST_LIB_HVPV := $(GUEST_LIB:$(GUEST_BUILD)/lib/%=$(GUEST_BUILD)/lib-hvpv/%)
GUEST_LIB64 := $(addprefix $(GUEST_BUILD)/lib64/,start.o print.o check.o)

.PHONY: guests guests-clean
guests: $(GUEST_FILES)

guests-clean:
	rm -rf $(GUEST_FILES) $(GUEST_BUILD)/lib $(GUEST_BUILD)/lib-pv $(GUEST_BUILD)/lib-hvpv $(GUEST_BUILD)/lib64 $(GUEST_BUILD)/teach

$(GUEST_BUILD)/lib/%.o: guests/lib/%.c $(GUEST_HEADERS) guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) -c -o $@ $<

$(GUEST_BUILD)/lib/%.o: guests/lib/%.S guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) -c -o $@ $<

$(GUEST_BUILD)/lib-pv/%.o: guests/lib/%.c $(GUEST_HEADERS) guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) -DHV_PARAVIRT -c -o $@ $<

$(GUEST_BUILD)/lib-pv/%.o: guests/lib/%.S $(GUEST_HEADERS) guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) -DHV_PARAVIRT -c -o $@ $<

$(GUEST_PV:%=$(GUEST_BUILD)/%.pv.elf): $(GUEST_BUILD)/%.pv.elf: guests/%.c $(GUEST_BUILD)/lib/multiboot.o $(GUEST_LIB_PV) guests/lib/guest.ld $(GUEST_HEADERS)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -DHV_PARAVIRT -T guests/lib/guest.ld -o $@ $(filter %.o,$^) $<

$(GUEST_BUILD)/lib-hvpv/%.o: guests/lib/%.c $(GUEST_HEADERS) guests.mk hvd/hvpvcc/bin/as
	@mkdir -p $(@D)
	$(GUEST_HVPV_CC) -m32 $(GUEST_CFLAGS) -c -o $@ $<

$(GUEST_BUILD)/lib-hvpv/%.o: guests/lib/%.S guests.mk hvd/hvpvcc/bin/as
	@mkdir -p $(@D)
	$(GUEST_HVPV_CC) -m32 $(GUEST_CFLAGS) -c -o $@ $<

$(GUEST_HVPV:%=$(GUEST_BUILD)/%.hvpv.elf): $(GUEST_BUILD)/%.hvpv.elf: guests/%.c $(GUEST_BUILD)/lib-hvpv/multiboot.o $(GUEST_LIB_HVPV) guests/lib/guest.ld $(GUEST_HEADERS)
	$(GUEST_HVPV_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -T guests/lib/guest.ld -o $@ $(filter %.o,$^) $<

$(GUEST_BUILD)/lib64/%.o: guests/lib/%.c $(GUEST_HEADERS) guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m64 $(GUEST_CFLAGS) -c -o $@ $<

$(GUEST_MULTIBOOT:%=$(GUEST_BUILD)/%.elf): $(GUEST_BUILD)/%.elf: guests/%.c $(GUEST_BUILD)/lib/multiboot.o $(GUEST_LIB) guests/lib/guest.ld $(GUEST_HEADERS)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -T guests/lib/guest.ld -o $@ $(filter %.o,$^) $<

$(GUEST_BUILD)/pvh.elf: guests/pvh.c $(GUEST_BUILD)/lib/pvh.o $(GUEST_LIB) guests/lib/guest.ld $(GUEST_HEADERS)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -T guests/lib/guest.ld -o $@ $(filter %.o,$^) $<

$(GUEST_BUILD)/modes.elf: $(MODES) guests/modes/modes.h $(GUEST_BUILD)/lib/multiboot.o $(GUEST_LIB) guests/lib/guest.ld $(GUEST_HEADERS)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -T guests/lib/guest.ld -o $@ $(filter %.o,$^) $(MODES)

$(GUEST_BUILD)/modes.pv.elf: $(MODES) guests/modes/modes.h $(GUEST_BUILD)/lib/multiboot.o $(GUEST_LIB_PV) guests/lib/guest.ld $(GUEST_HEADERS)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -DHV_PARAVIRT -T guests/lib/guest.ld -o $@ $(filter %.o,$^) $(MODES)

$(GUEST_BUILD)/nano.elf: guests/nano.c guests/nano_quickest.h guests/nano_ops.S guests/nano_loops.S guests/nano_compute.S $(GUEST_BUILD)/lib/multiboot.o $(GUEST_LIB) guests/lib/guest.ld $(GUEST_HEADERS)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -T guests/lib/guest.ld -o $@ $(filter %.o,$^) guests/nano.c guests/nano_ops.S

# What of it a process of the host can do: a 32-bit Linux program.
$(GUEST_BUILD)/nano-native: guests/nano_native.c guests/nano_quickest.h guests/nano_loops.S guests/nano_compute.S guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -o $@ $(filter %.c %.S,$^)

# What a kernel of its own needs of it, beside guests/include/hv.
$(GUEST_BUILD)/libhvpv.a: $(GUEST_BUILD)/lib-pv/pv.o
	rm -f $@
	$(GUEST_AR) rcs $@ $^

# With its programs apart, so that they can have segments that end where the kernel begins.
$(GUEST_BUILD)/nano.pv.elf: guests/nano.c guests/nano_quickest.h guests/nano_ops.S guests/nano_loops.S guests/nano_pv.S guests/nano_compute.S $(GUEST_BUILD)/lib/multiboot.o $(GUEST_LIB_PV) guests/lib/apart.ld $(GUEST_HEADERS)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -DHV_PARAVIRT -T guests/lib/apart.ld -o $@ $(filter %.o,$^) guests/nano.c guests/nano_ops.S guests/nano_pv.S

$(GUEST_BUILD)/limit.pv.elf $(GUEST_BUILD)/sites.pv.elf $(GUEST_BUILD)/registers.pv.elf $(GUEST_BUILD)/spaces.pv.elf: $(GUEST_BUILD)/%.pv.elf: guests/%.c $(GUEST_BUILD)/lib/multiboot.o $(GUEST_LIB_PV) guests/lib/apart.ld $(GUEST_HEADERS)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -DHV_PARAVIRT -T guests/lib/apart.ld -o $@ $(filter %.o,$^) $<

# Its programs have a page directory entry of their own.
$(GUEST_BUILD)/spaces.pv.elf: GUEST_LDFLAGS += -Wl,--defsym=kernel_base=0x400000

GUEST_LONG := long alias
$(GUEST_LONG:%=$(GUEST_BUILD)/%.elf): $(GUEST_BUILD)/%.elf: guests/%.c guests/long_entry.S $(GUEST_LIB64) guests/lib/guest.ld $(GUEST_HEADERS)
	$(GUEST_CC) -m64 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -T guests/lib/guest.ld -o $@ $(filter %.o %.S,$^) $<

$(GUEST_BUILD)/flat.elf: guests/flat.S guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_LDFLAGS) -Wl,-Ttext=0x100000 -o $@ $<

# Half of it is 64-bit code.
$(GUEST_BUILD)/hostile.elf: guests/hostile.S guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m64 $(GUEST_LDFLAGS) -Wl,-Ttext=0x100000 -o $@ $<

$(GUEST_BUILD)/flat.bin $(GUEST_BUILD)/hostile.bin: $(GUEST_BUILD)/%.bin: $(GUEST_BUILD)/%.elf
	$(GUEST_OBJCOPY) -O binary -j .text $< $@

# A disk of 1 MiB whose boot sector is at its beginning; on a virtio disk of less than a cylinder (504 KiB) SeaBIOS finds no sector at all.
$(GUEST_BUILD)/boot.elf: guests/boot.S guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_LDFLAGS) -Wl,-Ttext=0x7c00 -o $@ $<

$(GUEST_BUILD)/boot.img: $(GUEST_BUILD)/boot.elf
	$(GUEST_OBJCOPY) -O binary -j .text --pad-to 0x107c00 $< $@

# A program for 32-bit Linux guests (tests/e2e/test_linux.py).
$(GUEST_BUILD)/avx: guests/linux/avx.c guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(filter-out -mgeneral-regs-only,$(GUEST_CFLAGS)) -mavx -mstackrealign $(GUEST_LDFLAGS) -o $@ $<

# The same for bench/linux_ops.py, which runs it on the host, too.
$(GUEST_BUILD)/ops: guests/linux/ops.c guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) -O2 $(GUEST_LDFLAGS) -o $@ $<

$(GUEST_BUILD)/sites $(GUEST_BUILD)/watched: $(GUEST_BUILD)/%: guests/linux/%.c guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -o $@ $<

# A program for 64-bit Linux guests (bench/virtio_blk.py).
$(GUEST_BUILD)/diskrate: guests/linux/diskrate.c guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m64 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -o $@ $<
