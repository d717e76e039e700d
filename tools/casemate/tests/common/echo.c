/* Echo over sockets, both ends: what a guest and its host say to each other over vsock.
 *   echo listen vsock PORT | unix PATH          takes one connection and sends back what it reads
 *   echo connect vsock[:CID] PORT TEXT | unix PATH TEXT
 *                                               sends TEXT and a line end, prints what comes back
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <linux/vm_sockets.h>

int main(int argc, char **argv)
{
	struct sockaddr_vm vm = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY };
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct sockaddr *address = (struct sockaddr *)&un;
	socklen_t size = sizeof un;
	char buffer[4096];
	ssize_t count;
	int fd, listens, is_vsock;

	if (argc < 4)
		return 2;
	listens = !strcmp(argv[1], "listen");
	is_vsock = !strncmp(argv[2], "vsock", 5);
	if (is_vsock) {
		vm.svm_port = atoi(argv[3]);
		if (!listens)
			vm.svm_cid = argv[2][5] ? atoi(argv[2] + 6) : VMADDR_CID_HOST;
		address = (struct sockaddr *)&vm;
		size = sizeof vm;
	} else {
		strncpy(un.sun_path, argv[3], sizeof un.sun_path - 1);
	}
	fd = socket(address->sa_family, SOCK_STREAM, 0);
	if (listens) {
		if (bind(fd, address, size) || listen(fd, 1))
			return perror("listen"), 1;
		puts("LISTENING");
		fflush(stdout);
		fd = accept(fd, NULL, NULL);
		while ((count = read(fd, buffer, sizeof buffer)) > 0)
			if (write(fd, buffer, count) != count)
				return perror("write"), 1;
		return 0;
	}
	if (argc < 5 || connect(fd, address, size))
		return perror("connect"), 1;
	dprintf(fd, "%s\n", argv[4]);
	while ((count = read(fd, buffer, sizeof buffer)) > 0) {
		fwrite(buffer, 1, count, stdout);
		fflush(stdout);
		/* The last line is the echo. */
		if (memmem(buffer, count, "END\n", 4))
			return 0;
	}
	return 1;
}
