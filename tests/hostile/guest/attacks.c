// One function for each attack of the table in ../table.rs; the compiler is told which one is `ATTACK`. Each
// ends with status 42 if the machine did what it has to do.

#include "library.h"

// --- transport -------------------------------------------------------------------------------------------

static void wrong_features_again_and_again(void)
{
	attack(ENTROPY);
	for (int i = 0; i < 20000; i++) {
		reset();
		MMIO8(device + 0x14) = 1;
		MMIO8(device + 0x14) = 3;
		MMIO8(device + 0x14) = 11;
		expect(!(status() & FEATURES_OK));
	}
}
static void status_backwards(void)
{
	attack(ENTROPY);
	for (int i = 0; i < 2000; i++)
		MMIO8(device + 0x14) = rnd();
}
static void ready_without_features(void)
{
	attack(ENTROPY);
	for (int i = 0; i < 500; i++) {
		reset();
		MMIO8(device + 0x14) = 15;
		kick(0);
	}
}
static void ready_without_queues(void)
{
	attack(ENTROPY);
	for (int i = 0; i < 2000; i++) {
		negotiate(F_VERSION_1);
		go();
		kick(0);
	}
}
static void queue_with_bad_addresses(void)
{
	u64 bad[] = { MEMORY - 16, MEMORY, WINDOW, ECAM, 0xfee00000ul, ~0xffful, 1ul << 63, RINGS(0) + 1, 0 };
	attack(ENTROPY);
	for (int which = 0; which < 3; which++)
		for (int i = 0; i < 9; i++) {
			u64 at[3] = { TABLE(0), AVAILABLE(0), USED(0) };
			at[which] = bad[i];
			negotiate(F_VERSION_1);
			queue_at(0, 64, at[0], at[1], at[2]);
			go();
			kick(0);
		}
}
static void misaligned_rings_again_and_again(void)
{
	attack(ENTROPY);
	for (int i = 0; i < 20000; i++) {
		negotiate(F_VERSION_1);
		MMIO16(device + 0x16) = 0;
		MMIO32(device + 0x20) = 1;
		MMIO16(device + 0x1c) = 1;
	}
}
static void overlapping_rings(void)
{
	attack(ENTROPY);
	for (int i = 0; i < 50; i++) {
		negotiate(F_VERSION_1);
		queue_at(0, 64, RINGS(0), RINGS(0), RINGS(0));
		go();
		MMIO16(RINGS(0) + 2) = 1;
		kick(0);
		spin(2000);
	}
}
static void queue_sizes_of_all_kinds(void)
{
	attack(ENTROPY);
	for (u32 size = 0; size < 65536; size += 97) {
		negotiate(F_VERSION_1);
		queue_at(0, size, TABLE(0), AVAILABLE(0), USED(0));
		go();
	}
}
static void queues_that_are_not_there(void)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1);
	for (u32 index = 1; index < 65536; index += 61) {
		queue_at(index, 64, TABLE(0), AVAILABLE(0), USED(0));
		MMIO16(device + 0x16) = index;
		expect(MMIO16(device + 0x18) == 0);
	}
}
static void queue_changed_while_it_is_served(void)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1);
	queue(0, 64);
	describe(TABLE(0), 0, DATA, 64, WRITE, 0);
	go();
	for (int i = 0; i < 5000; i++) {
		MMIO16(device + 0x16) = 0;
		MMIO16(device + 0x18) = 1 << rnd() % 8;
		MMIO32(device + 0x20) = rnd();
		MMIO16(device + 0x1c) = rnd() & 1;
		MMIO16(AVAILABLE(0) + 2) = MMIO16(AVAILABLE(0) + 2) + 1;
		kick(0);
	}
}
static void resets_while_it_works(void)
{
	attack(ENTROPY);
	for (int i = 0; i < 500; i++) {
		negotiate(F_VERSION_1);
		queue(0, 64);
		for (int n = 0; n < 64; n++) {
			describe(TABLE(0), n, DATA + n * 4096, 4096, WRITE, 0);
			offer(0, n, n);
		}
		go();
		kick(0);
		reset();
	}
}
static void doorbells_of_all_values(void)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1);
	queue(0, 64);
	go();
	for (u32 i = 0; i < 5000; i++) {
		MMIO16(device + 0x1000 + 4 * (i % 256)) = rnd();
		MMIO32(device + 0x1000) = rnd();
	}
}
static void registers_with_all_widths(void)
{
	attack(ENTROPY);
	for (int i = 0; i < 20000; i++) {
		u64 at = device + rnd() % 0x4000, value = rnd();
		switch (rnd() & 7) {
		case 0: MMIO8(at) = value; break;
		case 1: MMIO16(at) = value; break;
		case 2: MMIO32(at) = value; break;
		case 3: MMIO64(at) = value; break;
		case 4: (void)MMIO8(at); break;
		case 5: (void)MMIO16(at); break;
		case 6: (void)MMIO32(at); break;
		default: (void)MMIO64(at);
		}
	}
}

// --- rings -----------------------------------------------------------------------------------------------

static void chain_that_is_a_loop(void) { bad_chain(DATA, 16, NEXT | WRITE, 0); }
static void descriptor_past_the_table(void) { bad_chain(DATA, 16, NEXT | WRITE, 64); }
static void empty_buffer(void) { bad_chain(DATA, 0, WRITE, 0); }
static void buffer_that_wraps_around(void) { bad_chain(0xfffffffffffffff0ul, 64, WRITE, 0); }
static void buffer_of_4_gib(void) { bad_chain(0x7ffffffffffff000ul, 0xffffffff, WRITE, 0); }
static void buffer_in_registers(void) { bad_chain(WINDOW, 64, WRITE, 0); }
static void buffer_in_configuration_space(void) { bad_chain(ECAM, 64, WRITE, 0); }
static void buffer_at_the_local_apic(void) { bad_chain(0xfee00000ul, 64, WRITE, 0); }
static void buffer_astride_the_end_of_memory(void) { bad_chain(MEMORY - 8, 16, WRITE, 0); }
static void indirect_table_in_registers(void) { bad_chain(ECAM, 16, INDIRECT, 0); }
static void indirect_table_too_long(void) { bad_chain(DATA, 16 * 65, INDIRECT, 0); }
static void indirect_table_of_odd_length(void) { bad_chain(DATA, 17, INDIRECT, 0); }
static void indirect_and_next(void) { bad_chain(DATA, 16, INDIRECT | NEXT, 1); }
static void indirect_table_in_an_indirect_table(void)
{
	describe(DATA, 0, DATA, 32, INDIRECT, 0);
	bad_chain(DATA, 32, INDIRECT, 0);
}
static void loop_in_an_indirect_table(void)
{
	describe(DATA, 0, RINGS(4), 16, NEXT | WRITE, 1);
	describe(DATA, 1, RINGS(4), 16, NEXT | WRITE, 0);
	bad_chain(DATA, 32, INDIRECT, 0);
}
static void indirect_without_the_feature(void)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1);
	queue(0, 64);
	describe(DATA, 0, DATA + 64, 16, WRITE, 0);
	describe(TABLE(0), 0, DATA, 16, INDIRECT, 0);
	go();
	offer(0, 0, 0);
	kick(0);
	wait_for_reset();
}
static void readable_after_writable(void)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1);
	queue(0, 64);
	describe(TABLE(0), 0, DATA, 16, NEXT | WRITE, 1);
	describe(TABLE(0), 1, DATA, 16, 0, 0);
	go();
	offer(0, 0, 0);
	kick(0);
	wait_for_reset();
}
static void available_index_jumps(void)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1);
	queue(0, 64);
	go();
	MMIO16(AVAILABLE(0) + 2) = 65;
	kick(0);
	wait_for_reset();
}
static void head_past_the_table(void)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1);
	queue(0, 64);
	go();
	offer(0, 0, 64);
	kick(0);
	wait_for_reset();
}
static void one_chain_offered_64_times(void)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1);
	queue(0, 64);
	describe(TABLE(0), 0, DATA, 64, WRITE, 0);
	go();
	MMIO16(AVAILABLE(0) + 2) = 64;
	kick(0);
	wait_for_used(0, 64);
}
static void chains_changed_while_they_are_read(void)
{
	attack(ENTROPY);
	negotiate(F_VERSION_1 | F_INDIRECT);
	queue(0, 64);
	go();
	for (int i = 0; i < 3000 && !(status() & NEEDS_RESET); i++) {
		describe(TABLE(0), i % 64, DATA, 64, WRITE, 0);
		offer(0, i % 64, i % 64);
		MMIO16(AVAILABLE(0) + 2) = i + 1;
		kick(0);
		describe(TABLE(0), i % 64, rnd(), rnd(), rnd() & 7, rnd());
	}
}
static void broken_queues_again_and_again(void)
{
	for (int i = 0; i < 300; i++)
		bad_chain(DATA, 0, WRITE, 0);
}

// --- PCI -------------------------------------------------------------------------------------------------

static void registers_moved_over_everything(void)
{
	u64 where[] = { 0, 0x100000, RINGS(0), ECAM, WINDOW, WINDOW + 0x4000, 0xfec00000ul, 0xfee00000ul, 0xffffc000ul };
	attack(ENTROPY);
	u32 home = MMIO32(CONFIG(slot, 0x10));
	for (int i = 0; i < 200; i++) {
		MMIO32(CONFIG(slot, 0x10)) = where[i % 9];
		MMIO16(CONFIG(slot, 4)) = 0;
		MMIO16(CONFIG(slot, 4)) = 6;
	}
	MMIO32(CONFIG(slot, 0x10)) = home;
}
static void two_devices_at_one_address(void)
{
	attack(ENTROPY);
	u32 home = MMIO32(CONFIG(slot, 0x10)), other = MMIO32(CONFIG(find(DISK), 0x10));
	MMIO32(CONFIG(slot, 0x10)) = other;
	for (int i = 0; i < 1000; i++)
		MMIO8(other + 0x14) = rnd();
	MMIO32(CONFIG(slot, 0x10)) = home;
}
static void configuration_space_at_random(void)
{
	for (int i = 0; i < 20000; i++) {
		u64 at = ECAM + rnd() % 0x100000;
		// BARs stay where they are.
		if ((at & 0x7fff) >= 4 && (at & 0x7fff) < 0x14)
			continue;
		MMIO32(at & ~3ul) = rnd();
		(void)MMIO64(at & ~7ul);
	}
}
static void access_through_the_window_of_itself(void)
{
	attack(ENTROPY);
	u32 window = 0;
	for (u32 at = MMIO8(CONFIG(slot, 0x34)); at; at = MMIO8(CONFIG(slot, at + 1)))
		if (MMIO8(CONFIG(slot, at)) == 9 && MMIO8(CONFIG(slot, at + 3)) == 5)
			window = at;
	expect(window);
	for (int i = 0; i < 5000; i++) {
		MMIO8(CONFIG(slot, window + 4)) = rnd() & 7 ? 0 : rnd();
		MMIO32(CONFIG(slot, window + 8)) = rnd() & 1 ? rnd() : rnd() & 0x3fff;
		MMIO32(CONFIG(slot, window + 12)) = (u32[]){ 1, 2, 4, 8, 0, ~0u, 3, 16 }[rnd() & 7];
		MMIO32(CONFIG(slot, window + 16)) = rnd();
		(void)MMIO32(CONFIG(slot, window + 16));
	}
}
static void interrupts_of_all_kinds(void)
{
	attack(ENTROPY);
	u32 capability = MMIO8(CONFIG(slot, 0x34));
	for (int i = 0; i < 300; i++) {
		negotiate(F_VERSION_1);
		MMIO16(device + 0x10) = rnd();
		MMIO16(device + 0x16) = 0;
		MMIO16(device + 0x1a) = rnd() & 1;
		MMIO16(CONFIG(slot, capability + 2)) = rnd();
		for (int n = 0; n < 16; n++)
			MMIO32(device + 0x2000 + (rnd() % 0x1000 & ~3ul)) = rnd();
		queue(0, 64);
		MMIO16(CONFIG(slot, capability + 2)) = 0x8000;
		describe(TABLE(0), 0, DATA, 64, WRITE, 0);
		go();
		offer(0, 0, 0);
		kick(0);
		spin(1000);
	}
}

// --- board -----------------------------------------------------------------------------------------------

static void ports_at_random(void)
{
	for (int i = 0; i < 20000; i++) {
		u16 port = rnd();
		// All but those that end the guest.
		if ((port >= 0x3f5 && port < 0x400) || (port >= 0x4f8 && port < 0x508) || (port >= 0x5f8 && port < 0x610) ||
		    (port >= 0x61 && port < 0x65) || (port >= 0xcf6 && port < 0xcfa))
			continue;
		switch (rnd() % 6) {
		case 0: out8(port, rnd()); break;
		case 1: out16(port, rnd()); break;
		case 2: out32(port, rnd()); break;
		case 3: in8(port); break;
		case 4: in16(port); break;
		default: in32(port);
		}
	}
}
static void ends_of_the_wrong_width(void)
{
	for (int i = 0; i < 3000; i++) {
		out16(0x600, 0x3434);
		out32(0x600, 0x34343434);
		out16(0x602, 1);
		out32(0x602, 1);
		out16(0x64, 0xfefe);
		out16(0x505, 2);
		in8(0x600);
		in16(0x601);
		in32(0x5fe);
		out8(0x600, 0x30);
		out8(0x602, 2);
	}
}
static void io_apic_at_random(void)
{
	for (int i = 0; i < 5000; i++) {
		MMIO32(0xfec00000ul) = rnd();
		MMIO32(0xfec00010ul) = rnd() | 1 << 16;
		(void)MMIO32(0xfec00010ul);
		MMIO8(0xfec00000ul + rnd() % 0x1000) = rnd();
	}
}
static void interrupts_from_the_serial_port_without_end(void)
{
	MMIO32(0xfec00000ul) = 0x10 + 2 * 4;
	for (int i = 0; i < 2000; i++) {
		MMIO32(0xfec00010ul) = 1 << 16 | 0x20;
		out8(0x3f9, 0);
		out8(0x3f9, 2);
		out8(0x3f8, '.');
	}
}
static void serial_flood(void)
{
	for (int i = 0; i < 100000; i++)
		out8(0x3f8, 'A' + i % 26);
}
static void serial_registers_at_random(void)
{
	for (int i = 0; i < 10000; i++) {
		out8(0x3f8 + rnd() % 8, rnd());
		in8(0x3f8 + rnd() % 8);
	}
}
static void clock_at_random(void)
{
	for (int i = 0; i < 5000; i++) {
		out8(0x70, rnd());
		out8(0x71, rnd());
		in8(0x71);
	}
}

// --- disk ------------------------------------------------------------------------------------------------

static void lying_disk_requests(void)
{
	attack(DISK);
	for (int i = 0; i < 500; i++) {
		negotiate(F_VERSION_1 | 1ul << 9 | 1ul << 13 | 1ul << 14 | F_INDIRECT);
		queue(0, 128);
		MMIO32(DATA) = (u32[]){ 0, 1, 4, 8, 11, 13, ~0u, 2 }[rnd() & 7];
		MMIO64(DATA + 8) = rnd() & 3 ? rnd() % 4096 : rnd();
		MMIO64(DATA + 16) = rnd() % 8192;
		MMIO32(DATA + 24) = rnd();
		MMIO32(DATA + 28) = rnd() & 3;
		int count = 1 + rnd() % 4;
		describe(TABLE(0), 0, DATA, rnd() & 1 ? 16 : 32, NEXT, 1);
		for (int n = 1; n <= count; n++)
			describe(TABLE(0), n, rnd() & 3 ? DATA + 0x4000 : MEMORY - rnd() % 4096,
				 rnd() & 3 ? 512 * (1 + rnd() % 8) : rnd(), NEXT | (rnd() & 1) << 1, n + 1);
		describe(TABLE(0), count + 1, DATA + 0x3000, 1 + (rnd() & 1), WRITE, 0);
		go();
		offer(0, 0, 0);
		kick(0);
		for (int n = 0; n < 200 && !(status() & NEEDS_RESET) && !MMIO16(USED(0) + 2); n++)
			spin(200);
	}
}
static void sectors_past_the_end(void)
{
	disk();
	u64 sectors = MMIO32(device + 0x800);
	u64 bad[] = { sectors, sectors - 1, ~0ul, ~0ul >> 9, 1ul << 55 };
	for (int i = 0; i < 5; i++) {
		expect(request(0, bad[i], 1024, WRITE) == 1);
		expect(request(1, bad[i], 1024, 0) == 1);
	}
	expect(request(0, 0, 512, WRITE) == 0);
}
static void discards_past_the_end(void)
{
	disk();
	u64 segment = DATA + 0x2000;
	u64 bad[][2] = { { ~0ul, 8 }, { 0, ~0u }, { 1ul << 54, 1 }, { 0, 0 } };
	for (int i = 0; i < 4; i++)
		for (int type = 11; type <= 13; type += 2) {
			MMIO64(segment) = bad[i][0];
			MMIO32(segment + 8) = bad[i][1];
			MMIO32(segment + 12) = 0;
			expect(request(type, 0, 16, 0) != 0);
		}
	expect(request(0, 0, 512, WRITE) == 0);
}
static void whole_disk_zeroed_again_and_again(void)
{
	disk();
	u64 segment = DATA + 0x2000;
	for (int i = 0; i < 200; i++) {
		MMIO64(segment) = 0;
		MMIO32(segment + 8) = MMIO32(device + 0x800);
		MMIO32(segment + 12) = i & 1;
		expect(request(13, 0, 16, 0) == 0);
	}
}
static void header_without_status(void)
{
	attack(DISK);
	negotiate(F_VERSION_1);
	queue(0, 128);
	describe(TABLE(0), 0, DATA, 16, 0, 0);
	go();
	offer(0, 0, 0);
	kick(0);
	wait_for_reset();
}
static void status_before_the_header_is_whole(void)
{
	attack(DISK);
	negotiate(F_VERSION_1);
	queue(0, 128);
	describe(TABLE(0), 0, DATA, 15, NEXT, 1);
	describe(TABLE(0), 1, DATA + 64, 1, WRITE, 0);
	go();
	offer(0, 0, 0);
	kick(0);
	wait_for_reset();
}
static void disk_reset_with_requests_on_their_way(void)
{
	for (int i = 0; i < 100; i++) {
		disk();
		for (int n = 0; n < 32; n++) {
			MMIO32(DATA + 16 * n) = n & 1;
			MMIO64(DATA + 16 * n + 8) = n * 8;
			describe(TABLE(0), 3 * n, DATA + 16 * n, 16, NEXT, 3 * n + 1);
			describe(TABLE(0), 3 * n + 1, DATA + 0x10000 + n * 4096, 4096, NEXT | (n & 1 ? 0 : WRITE), 3 * n + 2);
			describe(TABLE(0), 3 * n + 2, DATA + 0x1000 + n, 1, WRITE, 0);
			offer(0, n, 3 * n);
		}
		kick(0);
		reset();
	}
}

// --- sockets ---------------------------------------------------------------------------------------------

static u16 sent, refilled;
#define INBOX 0x3000000ul
#define OUTBOX 0x2600000ul

static void sockets(void)
{
	attack(SOCKETS);
	negotiate(F_VERSION_1);
	for (int n = 0; n < 3; n++)
		queue(n, n == 2 ? 16 : 256);
	go();
	for (int i = 0; i < 256; i++) {
		describe(TABLE(0), i, INBOX + i * 4096, 4096, WRITE, 0);
		offer(0, i, i);
	}
	refilled = 256;
	kick(0);
}
static void packet(u64 source, u64 target, u32 from, u32 to, u32 length, u16 type, u16 operation, u32 bytes)
{
	struct { u64 source, target; u32 from, to, length; u16 type, operation; u32 flags, room, taken; }
		__attribute__((packed)) header = { source, target, from, to, length, type, operation, 0, 65536, 0 };
	for (int i = 0; i < 44; i++)
		MMIO8(OUTBOX + i) = ((u8 *)&header)[i];
	describe(TABLE(1), sent % 256, OUTBOX, 44 + bytes, 0, 0);
	MMIO16(AVAILABLE(1) + 4 + 2 * (sent % 256)) = sent % 256;
	MMIO16(AVAILABLE(1) + 2) = ++sent;
	kick(1);
	for (u64 i = 0; i < 40000000 && MMIO16(USED(1) + 2) != sent && !(status() & NEEDS_RESET); i++)
		__asm__ volatile("pause");
	while ((u16)(MMIO16(USED(0) + 2) + 256 - refilled) > 0) {
		MMIO16(AVAILABLE(0) + 4 + 2 * (refilled % 256)) = refilled % 256;
		MMIO16(AVAILABLE(0) + 2) = ++refilled;
	}
	kick(0);
}
static void streams_that_nobody_reads(void)
{
	sockets();
	for (int i = 0; i < 1050; i++) {
		packet(3, 2, 1000 + i, 1234, 0, 1, 1, 0);
		for (int n = 0; n < 4; n++)
			packet(3, 2, 1000 + i, 1234, 65536, 1, 5, 65536);
	}
	spin(100000000);
}
static void packets_of_strangers(void)
{
	sockets();
	for (int i = 0; i < 2000; i++)
		packet(rnd() & 3 ? 3 : rnd(), rnd() & 3 ? 2 : rnd(), rnd(), rnd(), 0, rnd() % 3, rnd() % 10, 0);
}
static void packet_longer_than_its_chain(void)
{
	sockets();
	packet(3, 2, 1, 1234, 65536, 1, 5, 16);
	packet(3, 2, 1, 1234, ~0u, 1, 5, 16);
}
static void connections_to_nobody(void)
{
	sockets();
	for (int i = 0; i < 3000; i++)
		packet(3, 2, i, 4321, 0, 1, 1, 0);
}
static void inbox_without_room(void)
{
	attack(SOCKETS);
	negotiate(F_VERSION_1);
	for (int n = 0; n < 3; n++)
		queue(n, n == 2 ? 16 : 256);
	go();
	describe(TABLE(0), 0, INBOX, 44, WRITE, 0);
	offer(0, 0, 0);
	kick(0);
	refilled = 256;
	packet(3, 2, 1, 4321, 0, 1, 1, 0);
	wait_for_reset();
}

// --- balloon, console, network ---------------------------------------------------------------------------

static void balloon_of_pages_that_are_not_there(void)
{
	static u32 pages[1024];
	attack(BALLOON);
	for (int i = 0; i < 50; i++) {
		negotiate(F_VERSION_1);
		for (int n = 0; n < 3; n++)
			queue(n, 16);
		go();
		for (int n = 0; n < 1024; n++)
			pages[n] = i & 1 ? rnd() : rnd() % ((MEMORY >> 12) - 0x3800) + 0x3800;
		describe(TABLE(0), 0, (u64)pages, 4096, 0, 0);
		offer(0, 0, 0);
		kick(0);
		describe(TABLE(1), 0, (u64)pages, 4095, 0, 0);
		offer(1, 0, 0);
		kick(1);
		spin(20000);
	}
}
static void console_flood(void)
{
	attack(CONSOLE);
	negotiate(F_VERSION_1);
	queue(0, 64);
	queue(1, 64);
	for (int i = 0; i < 64; i++) {
		describe(TABLE(1), i, DATA, 1 << 20, 0, 0);
		offer(1, i, i);
	}
	go();
	kick(1);
	spin(100000000);
}
static void console_input_without_room(void)
{
	attack(CONSOLE);
	negotiate(F_VERSION_1);
	queue(0, 64);
	queue(1, 64);
	for (int i = 0; i < 64; i++) {
		describe(TABLE(0), i, DATA, 1, 0, 0);
		offer(0, i, i);
	}
	go();
	kick(0);
	spin(1000000);
}
static void device_started_100_times(void)
{
	for (int i = 0; i < 100; i++)
		still_works();
}

// --- guests that go on until the host ends them ---------------------------------------------------------------

static void serial_flood_for_ever(void)
{
	for (;;)
		out8(0x3f8, 'x');
}
static void console_flood_for_ever(void)
{
	attack(CONSOLE);
	negotiate(F_VERSION_1);
	queue(0, 64);
	queue(1, 64);
	describe(TABLE(1), 0, DATA, 4096, 0, 0);
	go();
	for (u16 n = 0;; n++) {
		MMIO16(AVAILABLE(1) + 2) = n + 1;
		kick(1);
		while (MMIO16(USED(1) + 2) != (u16)(n + 1))
			;
	}
}
static void exits_for_ever(void)
{
	for (;;)
		in8(0x70);
}
static void sockets_for_ever(void)
{
	sockets();
	out8(0x3f8, '>');
	for (;;)
		__asm__ volatile("pause");
}
static void disk_reads_for_ever(void)
{
	disk();
	u64 sectors = MMIO32(device + 0x800);
	expect(request(0, 0, 4096, WRITE) == 0);
	out8(0x3f8, '>');
	patient = 1;
	for (u64 sector = 8;; sector = (sector + 8) % sectors)
		request(0, sector, 4096, WRITE);
}
static void connections_that_nobody_accepts(void)
{
	sockets();
	for (int i = 0; i < 3000; i++)
		packet(3, 2, i, 1234, 0, 1, 1, 0);
}

int main(void)
{
	ATTACK();
#ifndef NO_PROOF
	still_works();
#endif
	end(42);
}
