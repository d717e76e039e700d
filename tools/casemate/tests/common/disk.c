/* What busybox cannot ask of a disk, or of the file behind one. Its dd gives O_DIRECT up where a buffer is
 * not aligned, and never aligns one.
 *   disk discard|unmap|zeroes DEVICE OFFSET LENGTH   the range is not needed; is to be zeroes and may lose
 *                                                    its blocks; is to be zeroes and keep them
 *   disk read DEVICE OFFSET LENGTH COUNT             prints what so many reads in a row find, past the cache
 *   disk write DEVICE OFFSET LENGTH COUNT BYTE       the same the other way, each full of one character
 *   disk cached FILE                                 prints how many bytes of it are in the page cache
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <linux/falloc.h>
#include <linux/fs.h>

static int cached(int fd)
{
	struct stat file;
	size_t pages, at, count = 0;
	unsigned char *resident;
	void *map;

	if (fstat(fd, &file))
		return -1;
	pages = (file.st_size + 4095) / 4096;
	resident = malloc(pages);
	map = mmap(NULL, file.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED || mincore(map, file.st_size, resident))
		return -1;
	for (at = 0; at < pages; at++)
		count += resident[at] & 1;
	printf("%zu\n", count * 4096);
	return 0;
}

static int move(int fd, uint64_t offset, size_t length, int count, const char *byte)
{
	char *buffer = aligned_alloc(4096, (length + 4095) & ~4095UL);

	if (byte)
		memset(buffer, *byte, length);
	for (; count; count--, offset += length) {
		ssize_t done = byte ? pwrite(fd, buffer, length, offset) : pread(fd, buffer, length, offset);

		if (done != (ssize_t)length || (!byte && write(1, buffer, length) != done))
			return -1;
	}
	return 0;
}

static int act(int argc, char **argv)
{
	const char *what = argv[1];
	uint64_t range[2];
	int fd;

	if (argc == 3)
		return cached(open(argv[2], O_RDONLY));
	range[0] = strtoull(argv[3], NULL, 0);
	range[1] = strtoull(argv[4], NULL, 0);
	if (argc > 5) {
		fd = open(argv[2], O_DIRECT | (argc == 6 ? O_RDONLY : O_WRONLY));
		return move(fd, range[0], range[1], atoi(argv[5]), argv[6]);
	}
	fd = open(argv[2], O_RDWR);
	if (!strcmp(what, "discard"))
		return ioctl(fd, BLKDISCARD, range);
	if (!strcmp(what, "unmap"))
		return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range[0], range[1]);
	return fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, range[0], range[1]);
}

int main(int argc, char **argv)
{
	if (argc < 3 || argc == 4 || act(argc, argv)) {
		perror(argc > 1 ? argv[1] : "disk");
		return 1;
	}
	return 0;
}
