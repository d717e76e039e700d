// What hostile guests share: ports, registers of virtio devices on PCI (VIRTIO 1.2, section 4.1), rings (2.7).

#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define MMIO8(a) (*(volatile u8 *)(u64)(a))
#define MMIO16(a) (*(volatile u16 *)(u64)(a))
#define MMIO32(a) (*(volatile u32 *)(u64)(a))
#define MMIO64(a) (*(volatile u64 *)(u64)(a))

#define MEMORY 0x8000000ul
#define ECAM 0xe0000000ul
#define WINDOW 0xc0000000ul
#define CONFIG(slot, reg) (ECAM + ((u64)(slot) << 15) + (reg))

// Rings of queue n, and buffers that nothing else uses.
#define RINGS(n) (0x2000000ul + (u64)(n) * 0x10000)
#define TABLE(n) RINGS(n)
#define AVAILABLE(n) (RINGS(n) + 0x4000)
#define USED(n) (RINGS(n) + 0x8000)
#define DATA 0x2800000ul

enum { NET = 1, DISK = 2, CONSOLE = 3, ENTROPY = 4, BALLOON = 5, SOCKETS = 19 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 0x40 };
#define F_INDIRECT (1ul << 28)
#define F_EVENT_IDX (1ul << 29)
#define F_VERSION_1 (1ul << 32)

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0,%1" ::"a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0,%1" ::"a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0,%1" ::"a"(value), "Nd"(port)); }
static inline u8 in8(u16 port)
{
	u8 value;
	__asm__ volatile("inb %1,%0" : "=a"(value) : "Nd"(port));
	return value;
}
static inline u16 in16(u16 port)
{
	u16 value;
	__asm__ volatile("inw %1,%0" : "=a"(value) : "Nd"(port));
	return value;
}
static inline u32 in32(u16 port)
{
	u32 value;
	__asm__ volatile("inl %1,%0" : "=a"(value) : "Nd"(port));
	return value;
}

static void end(u8 status)
{
	out8(0x501, status);
	for (;;)
		__asm__ volatile("pause");
}
// The status of a guest whose machine did not do what it has to.
static void expect(int holds)
{
	if (!holds)
		end(99);
}

static u64 seed = 88172645463325252ul;
static u64 rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}
static void spin(u64 times)
{
	for (volatile u64 i = 0; i < times; i++)
		;
}
static void zero(u64 address, u64 length)
{
	for (u64 i = 0; i < length; i += 8)
		MMIO64(address + i) = 0;
}

static u32 find(u16 kind)
{
	for (u32 slot = 1; slot < 32; slot++)
		if (MMIO32(CONFIG(slot, 0)) == ((u32)(0x1040 + kind) << 16 | 0x1af4))
			return slot;
	end(98);
	return 0;
}

// The common configuration of the device that is attacked, and its slot.
static u64 device;
static u32 slot;

static void attack(u16 kind)
{
	slot = find(kind);
	MMIO16(CONFIG(slot, 4)) = 6;
	device = MMIO32(CONFIG(slot, 0x10));
}
static u8 status(void) { return MMIO8(device + 0x14); }
static void reset(void) { MMIO8(device + 0x14) = 0; }
// Up to FEATURES_OK.
static void negotiate(u64 features)
{
	reset();
	MMIO8(device + 0x14) = 1;
	MMIO8(device + 0x14) = 3;
	MMIO32(device + 8) = 0;
	MMIO32(device + 12) = features;
	MMIO32(device + 8) = 1;
	MMIO32(device + 12) = features >> 32;
	MMIO8(device + 0x14) = 11;
}
static void queue_at(u16 index, u16 size, u64 table, u64 available, u64 used)
{
	MMIO16(device + 0x16) = index;
	MMIO16(device + 0x18) = size;
	MMIO32(device + 0x20) = table;
	MMIO32(device + 0x24) = table >> 32;
	MMIO32(device + 0x28) = available;
	MMIO32(device + 0x2c) = available >> 32;
	MMIO32(device + 0x30) = used;
	MMIO32(device + 0x34) = used >> 32;
	MMIO16(device + 0x1c) = 1;
}
static void queue(u16 index, u16 size)
{
	zero(RINGS(index), 0x10000);
	queue_at(index, size, TABLE(index), AVAILABLE(index), USED(index));
}
static void go(void) { MMIO8(device + 0x14) = 15; }
static void kick(u16 index) { MMIO16(device + 0x1000 + index * 4) = index; }

static void describe(u64 table, u16 index, u64 address, u32 length, u16 flags, u16 next)
{
	MMIO64(table + 16 * index) = address;
	MMIO32(table + 16 * index + 8) = length;
	MMIO16(table + 16 * index + 12) = flags;
	MMIO16(table + 16 * index + 14) = next;
}
// Offers chain `head` as the entry `position` of the available ring, and so many entries in all.
static void offer(u16 index, u16 position, u16 head)
{
	MMIO16(AVAILABLE(index) + 4 + 2 * position) = head;
	MMIO16(AVAILABLE(index) + 2) = position + 1;
}
static void wait_for_reset(void)
{
	for (int i = 0; i < 100000 && !(status() & NEEDS_RESET); i++)
		spin(2000);
	expect(status() & NEEDS_RESET);
}
// A machine that is busy takes its time; one that does not answer at all is a failure.
static int patient;
static void wait_for_used(u16 index, u16 count)
{
	for (int i = 0; (patient || i < 1000000) && MMIO16(USED(index) + 2) != count; i++)
		spin(2000);
	expect(MMIO16(USED(index) + 2) == count);
}
// The device works after all that.
static void still_works(void)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1);
	queue(0, 64);
	describe(TABLE(0), 0, DATA, 64, WRITE, 0);
	go();
	offer(0, 0, 0);
	kick(0);
	wait_for_used(0, 1);
}
// One chain of the entropy device, after which the device asks for a reset.
static void bad_chain(u64 address, u32 length, u16 flags, u16 next)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1 | F_INDIRECT | F_EVENT_IDX);
	queue(0, 64);
	describe(TABLE(0), 0, address, length, flags, next);
	go();
	offer(0, 0, 0);
	kick(0);
	wait_for_reset();
}
// A request of the disk: header, so many bytes of data, status. Returns the status.
static u8 request(u32 type, u64 sector, u32 length, u16 data_flags)
{
	u64 header = DATA, answer = DATA + 0x1000;
	MMIO32(header) = type;
	MMIO64(header + 8) = sector;
	MMIO8(answer) = 0xee;
	describe(TABLE(0), 0, header, 16, NEXT, length ? 1 : 2);
	describe(TABLE(0), 1, DATA + 0x2000, length, NEXT | data_flags, 2);
	describe(TABLE(0), 2, answer, 1, WRITE, 0);
	u16 done = MMIO16(AVAILABLE(0) + 2);
	MMIO16(AVAILABLE(0) + 4 + 2 * (done % 128)) = 0;
	MMIO16(AVAILABLE(0) + 2) = done + 1;
	kick(0);
	wait_for_used(0, done + 1);
	return MMIO8(answer);
}
static void disk(void)
{
	attack(DISK);
	MMIO32(device) = 0;
	// FLUSH, DISCARD and WRITE_ZEROES, as far as there are.
	negotiate(F_VERSION_1 | MMIO32(device + 4) & (1ul << 9 | 1ul << 13 | 1ul << 14));
	queue(0, 128);
	go();
}
