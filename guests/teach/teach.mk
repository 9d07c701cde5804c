# The teaching kernel, for guests.mk. It takes of the library what it needs besides serial output, and its disk can boot it, too.

SYSTEM_PYTHON ?= python3
TEACH := main screen mp apic task keyboard disk shell
TEACH_FILES := guests/teach/welcome.txt guests/teach/README.md guests/teach/shell.c
TEACH_GUEST := $(GUEST_BUILD)/teach.elf $(GUEST_BUILD)/teach.img $(GUEST_BUILD)/teach.hvpv.elf

$(GUEST_BUILD)/teach/%.o: guests/teach/%.c guests/teach/teach.h $(GUEST_HEADERS) guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) -c -o $@ $<

$(GUEST_BUILD)/teach.elf: $(TEACH:%=$(GUEST_BUILD)/teach/%.o) $(addprefix $(GUEST_BUILD)/lib/,multiboot.o entry.o traps.o pic.o) guests/lib/guest.ld
	$(GUEST_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -T guests/lib/guest.ld -o $@ $(filter %.o,$^)

# With its zeros: a boot sector clears no memory.
$(GUEST_BUILD)/teach/teach.bin: $(GUEST_BUILD)/teach.elf
	$(GUEST_OBJCOPY) -O binary --set-section-flags .bss=alloc,load,contents -R .note $< $@

$(GUEST_BUILD)/teach/boot.bin: guests/teach/boot.S guests.mk
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 $(GUEST_LDFLAGS) -Wl,-Ttext=0x7c00 -Wl,--oformat=binary -o $@ $<

$(GUEST_BUILD)/teach.img: guests/teach/mkdisk.py $(GUEST_BUILD)/teach/boot.bin $(GUEST_BUILD)/teach/teach.bin $(TEACH_FILES)
	$(SYSTEM_PYTHON) guests/teach/mkdisk.py $@ $(GUEST_BUILD)/teach/boot.bin $(GUEST_BUILD)/teach/teach.bin $(TEACH_FILES)

# Built by hvpvcc.
$(GUEST_BUILD)/teach/hvpv/%.o: guests/teach/%.c guests/teach/teach.h $(GUEST_HEADERS) guests.mk hvd/hvpvcc/bin/as
	@mkdir -p $(@D)
	$(GUEST_HVPV_CC) -m32 $(GUEST_CFLAGS) -c -o $@ $<

$(GUEST_BUILD)/teach.hvpv.elf: $(TEACH:%=$(GUEST_BUILD)/teach/hvpv/%.o) $(addprefix $(GUEST_BUILD)/lib-hvpv/,multiboot.o entry.o traps.o pic.o) guests/lib/guest.ld
	$(GUEST_HVPV_CC) -m32 $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -T guests/lib/guest.ld -o $@ $(filter %.o,$^)
