"""What the tests share: private brokers, real workers, a ledger of effects, and waiting by condition.

Test modules import from here, never from the modules below.
"""

from .brokers import BrokerUnderTest
from .deployment import Deployment
from .ledger import Entry, Ledger
from .processes import free_port
from .proxy import Proxy
from .rabbitmq import RabbitNode
from .redis import RedisServer
from .waiting import consistently, eventually
from .workers import Worker, Workers

__all__ = [
    "BrokerUnderTest",
    "Deployment",
    "Entry",
    "Ledger",
    "Proxy",
    "RabbitNode",
    "RedisServer",
    "Worker",
    "Workers",
    "consistently",
    "eventually",
    "free_port",
]
