// A guest that only reads its virtio disk. After each series of reads it says its name on the serial port,
// and how many ticks of its clock it took, in hexadecimal; the host knows how many reads there are. Looks at
// the used ring all the time and wants no interrupts. VIRTIO 1.2: sections 4.1 (PCI), 4.2 (MMIO), 2.7 (queue).

#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define MMIO8(a) (*(volatile u8 *)(a))
#define MMIO16(a) (*(volatile u16 *)(a))
#define MMIO32(a) (*(volatile u32 *)(a))

enum { QUEUE = 128, SLOTS = 32, NEXT = 1, WRITE = 2, NO_NOTIFY = 1, NO_INTERRUPT = 1 };
#define DATA (64ul << 20) // one MiB for each slot, above the program
#define ECAM 0xe0000000ul
#define BRIDGE 0x0d578086

static struct { u64 address; u32 length; u16 flags, next; } table[QUEUE] __attribute__((aligned(16)));
static struct { volatile u16 flags, index, ring[QUEUE]; } available __attribute__((aligned(2)));
static struct { volatile u16 flags, index; struct { volatile u32 id, length; } ring[QUEUE]; } used
	__attribute__((aligned(4)));
static struct { u32 type, reserved; u64 sector; } header[SLOTS];
static volatile u8 status[SLOTS];

static u64 sectors, kick;
static int kick_is_long;
extern u64 pml4[512];

static void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static u32 in32(u16 port)
{
	u32 value;
	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static void say(const char *text)
{
	while (*text)
		out8(0x3f8, *text++);
}

static u64 clock(void)
{
	u32 low, high;
	__asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

static void end(const char *text)
{
	say(text);
	for (;;)
		__asm__ volatile("pause");
}

// Maps the 2 MiB around registers beyond 4 GiB: page tables are memory like all other.
static void map(u64 address)
{
	static u64 tables[8][512] __attribute__((aligned(4096)));
	static int count;
	u64 *level = pml4;
	for (int shift = 39; shift > 21; shift -= 9) {
		u64 *entry = &level[address >> shift & 511];
		if (!*entry)
			*entry = (u64)tables[count++] | 7;
		level = (u64 *)(*entry & ~0xffful);
	}
	level[address >> 21 & 511] = (address & ~0x1ffffful) | 0x87;
	__asm__ volatile("" ::: "memory");
}

// A PCI function's configuration: by ports, or where ours has it in memory, which its bridge tells.
static u32 config(u32 slot, u32 at)
{
	if (MMIO32(ECAM) == BRIDGE)
		return MMIO32(ECAM + (slot << 15) + (at & 0xffc)) >> (at & 3) * 8;
	out32(0xcf8, 1u << 31 | slot << 11 | (at & 0xfc));
	return in32(0xcfc) >> (at & 3) * 8;
}

static void enable(u32 slot)
{
	u16 command = config(slot, 4) | 6;
	if (MMIO32(ECAM) == BRIDGE)
		MMIO16(ECAM + (slot << 15) + 4) = command;
	else
		out16(0xcfc, command); // the port of the address has it from the read
}

// Where the registers are that a vendor capability of a PCI function tells.
static u64 registers(u32 slot, u32 capability)
{
	u32 bar = 0x10 + (config(slot, capability + 4) & 0xff) * 4, low = config(slot, bar);
	u64 base = low & ~0xful;
	if ((low & 6) == 4)
		base |= (u64)config(slot, bar + 4) << 32;
	base += config(slot, capability + 8);
	if (base >> 32)
		map(base);
	return base;
}

static void set64(u64 at, const volatile void *value)
{
	MMIO32(at) = (u64)value;
	MMIO32(at + 4) = 0;
}

static int pci(u32 slot)
{
	u32 id = config(slot, 0), notify_multiplier = 0;
	u64 common = 0, notify = 0, device = 0;
	if (id != 0x10421af4 && id != 0x10011af4)
		return 0;
	enable(slot);
	for (u32 at = config(slot, 0x34) & 0xff; at; at = config(slot, at + 1) & 0xff) {
		u32 type = config(slot, at + 3) & 0xff;
		if ((config(slot, at) & 0xff) != 9)
			continue;
		if (type == 1)
			common = registers(slot, at);
		else if (type == 2)
			notify = registers(slot, at), notify_multiplier = config(slot, at + 16);
		else if (type == 4)
			device = registers(slot, at);
	}
	MMIO8(common + 0x14) = 0;
	while (MMIO8(common + 0x14))
		;
	MMIO8(common + 0x14) = 1;
	MMIO8(common + 0x14) = 3;
	MMIO32(common + 8) = 0, MMIO32(common + 12) = 0;
	MMIO32(common + 8) = 1, MMIO32(common + 12) = 1; // VERSION_1
	MMIO8(common + 0x14) = 11;
	MMIO16(common + 0x16) = 0;
	MMIO16(common + 0x18) = QUEUE;
	set64(common + 0x20, table), set64(common + 0x28, &available), set64(common + 0x30, &used);
	kick = notify + MMIO16(common + 0x1e) * (u64)notify_multiplier;
	MMIO16(common + 0x1c) = 1;
	MMIO8(common + 0x14) = 15;
	sectors = MMIO32(device) | (u64)MMIO32(device + 4) << 32;
	return 1;
}

static int mmio(u64 base)
{
	if (MMIO32(base) != 0x74726976 || MMIO32(base + 4) != 2 || MMIO32(base + 8) != 2)
		return 0;
	MMIO32(base + 0x70) = 0;
	MMIO32(base + 0x70) = 1;
	MMIO32(base + 0x70) = 3;
	MMIO32(base + 0x24) = 0, MMIO32(base + 0x20) = 0;
	MMIO32(base + 0x24) = 1, MMIO32(base + 0x20) = 1; // VERSION_1
	MMIO32(base + 0x70) = 11;
	MMIO32(base + 0x30) = 0;
	MMIO32(base + 0x38) = QUEUE;
	set64(base + 0x80, table), set64(base + 0x90, &available), set64(base + 0xa0, &used);
	MMIO32(base + 0x44) = 1;
	MMIO32(base + 0x70) = 15;
	kick = base + 0x50, kick_is_long = 1;
	sectors = MMIO32(base + 0x100) | (u64)MMIO32(base + 0x104) << 32;
	return 1;
}

// PCI first; then where Firecracker and QEMU's microvm have their MMIO devices.
static int find(void)
{
	for (u32 slot = 0; slot < 32; slot++)
		if (pci(slot))
			return 1;
	for (u64 base = 0xc0000000; base < 0xc0008000; base += 0x1000)
		if (mmio(base))
			return 1;
	for (u64 base = 0xfeb00000; base < 0xfeb03000; base += 0x200)
		if (mmio(base))
			return 1;
	return 0;
}

static void submit(u32 slot, u64 sector, u32 bytes)
{
	header[slot].sector = sector;
	status[slot] = 0xff;
	table[slot * 3].address = (u64)&header[slot];
	table[slot * 3].length = 16;
	table[slot * 3].flags = NEXT;
	table[slot * 3].next = slot * 3 + 1;
	table[slot * 3 + 1].address = DATA + (slot << 20);
	table[slot * 3 + 1].length = bytes;
	table[slot * 3 + 1].flags = NEXT | WRITE;
	table[slot * 3 + 1].next = slot * 3 + 2;
	table[slot * 3 + 2].address = (u64)&status[slot];
	table[slot * 3 + 2].length = 1;
	table[slot * 3 + 2].flags = WRITE;
	available.ring[available.index % QUEUE] = slot * 3;
	__asm__ volatile("" ::: "memory");
	available.index++;
	__asm__ volatile("mfence" ::: "memory");
	if (used.flags & NO_NOTIFY)
		return;
	if (kick_is_long)
		MMIO32(kick) = 0;
	else
		MMIO16(kick) = 0;
}

// `count` reads of `bytes`, `depth` at once, one after the other or anywhere.
static void reads(const char *name, u32 count, u32 bytes, u32 depth, int anywhere)
{
	static u64 dice = 88172645463325252ul;
	static u16 seen;
	u64 places = sectors * 512 / bytes, place = 0;
	u32 begun = 0;
	u64 start = clock();
	for (u32 done = 0, slot = 0; done < count; ) {
		if (begun < depth) {
			slot = begun;
		} else {
			while (used.index == seen)
				__asm__ volatile("pause");
			slot = used.ring[seen++ % QUEUE].id / 3;
			if (status[slot])
				end("FAILED\n");
			done++;
		}
		if (begun == count)
			continue;
		dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
		submit(slot, (anywhere ? dice : place++) % places * (bytes / 512), bytes);
		begun++;
	}
	u64 ticks = clock() - start;
	say(name), say(" took ");
	for (int shift = 60; shift >= 0; shift -= 4)
		out8(0x3f8, "0123456789abcdef"[ticks >> shift & 15]);
	say("\n");
}

__attribute__((used)) void main(void)
{
	available.flags = NO_INTERRUPT;
	if (!find())
		end("FAILED: no disk\n");
	reads("warm", 256, 1 << 20, 1, 0); // caches, and this memory
	reads("random1", RANDOM1, 4096, 1, 1);
	reads("random32", RANDOM32, 4096, SLOTS, 1);
	reads("sequential", SEQUENTIAL, 1 << 20, 1, 0);
	end("FINISHED\n");
}
